"""Where a coordinator finds its services: the command line wins over the run file, and what neither has is named."""

import pytest

from baton.config import RunConfig
from baton.errors import ConfigError
from services.coordinator.connections import Addresses, addresses


def run(**sections):
    roles = {"models": {"reference": {"group": "judges"}}}
    return RunConfig.from_mapping(roles | sections)


def test_every_trainer_group_but_the_one_that_trains_has_an_address_of_its_own():
    given = addresses(run(), "b:1", "t:2", ["r:3"], ["judges=j:4"])
    assert given == Addresses("b:1", "t:2", ("r:3",), {"judges": "j:4"})
    config = run(services={"buffer_address": "b:1", "trainer_address": "t:2", "rollout_addresses": ["r:3"],
                           "group_addresses": {"judges": "j:9"}})  # fmt: skip
    assert addresses(config, None, None, None, None).groups == {"judges": "j:9"}
    assert addresses(config, None, None, None, ["judges=j:4"]).groups == {"judges": "j:4"}


def test_all_that_is_missing_is_named_with_the_option_that_gives_it():
    missing = "--trainer HOST:PORT, --rollout HOST:PORT, --trainer-group judges=HOST:PORT"
    with pytest.raises(ConfigError, match=f"no address for {missing}: give it"):
        addresses(run(), "b:1", None, None, None)


def test_a_run_on_given_answers_needs_no_rollout():
    config = run(models={}, algorithm={"name": "sft"})
    assert addresses(config, "b:1", "t:2", ["r:3"], None) == Addresses("b:1", "t:2", ())
