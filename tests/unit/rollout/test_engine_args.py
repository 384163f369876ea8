"""What a run file may add to the engine's arguments, and what it may not."""

from pathlib import Path
from typing import Any

import pytest

from baton.config.policy import PolicyConfig
from baton.errors import ConfigError

pytestmark = pytest.mark.slow  # importing vLLM takes more than five seconds


def arguments(**further: Any) -> Any:
    from services.rollout.engine_args import engine_args

    return engine_args(PolicyConfig(engine_args=further), Path("model"), 0)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("speculative_config", {"method": "ngram"}, "speculated tokens have no log-probabilities of the raw model"),
        ("spec_tokens", 3, "speculated tokens have no log-probabilities of the raw model"),
        ("data_parallel_size", 2, r"weights reach one engine per replica; .* set models\.policy\.num_replica"),
    ],
)
def test_what_would_make_samples_or_updates_wrong_is_refused_by_name_with_the_reason(
    name: str, value: Any, reason: str
) -> None:
    with pytest.raises(ConfigError, match=rf"models\.policy\.engine_args\.{name}: got .*; {reason}"):
        arguments(**{name: value})


def test_the_same_arguments_that_change_nothing_are_taken() -> None:
    assert arguments(data_parallel_size=1, speculative_config=None).data_parallel_size == 1
