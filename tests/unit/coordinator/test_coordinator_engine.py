"""What a user's module may define, and the errors for what it may not."""

import sys
import textwrap

import numpy as np
import pytest
from reward_functions import decorated, length

import baton.engine
from baton.engine import Engine, Group, PromptItem, load_engine
from baton.errors import ConfigError
from baton.samples import RewardStatus, Samples


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that can be imported, under a name of its own; returns the name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text, name="user_app"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        sys.modules.pop(name, None)
        return name

    return write


def test_the_example_in_the_documentation_works(module):
    example = textwrap.dedent(baton.engine.__doc__.split("\n\n", 1)[1].rsplit("\n\nThe module is", 1)[0])
    engine = load_engine(f"{module(example, 'arithmetic')}:engine")
    right, digits = engine.reward_functions()
    assert (right.function, right.weight, right.timeout_s) == ("arithmetic:is_right", 0.8, 2.0)
    assert (digits.function, digits.weight) == ("digits_only", 1.0)
    question = engine.prompts()[12]
    assert question == {"prompt": "What is 1 + 2?", "answer": "3"}
    assert sys.modules["arithmetic"].is_right(question["prompt"], " 3 ", question) == 1.0


def test_a_decorator_sets_weight_time_limit_and_arguments():
    plain, own = Engine(rewards=[length, decorated]).reward_functions()
    assert (plain.weight, plain.timeout_s, plain.params) == (1.0, 10.0, {})
    assert (own.function, own.weight) == ("reward_functions:decorated", 0.5)
    assert (own.timeout_s, own.params) == (2.0, {"key": "other"})


def test_a_reward_that_a_worker_cannot_import_is_refused():
    def inner(prompt, response, metadata):
        return 1.0

    for function in (inner, lambda prompt, response, metadata: 1.0):
        with pytest.raises(ConfigError, match="cannot be imported by a worker process: define it at the top level"):
            Engine(rewards=[function]).reward_functions()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("user_app", "must be module:attribute"),
        ("nowhere.at_all:engine", r"there is no module 'nowhere'.*PYTHONPATH"),
        ("user_app:engin", r"has no 'engin'; is it 'engine'\?"),
        ("user_app:other", r"has no 'other'; is it 'engine'\?"),
        ("user_app:number", "is a int, must be a baton.engine.Engine"),
    ],
)
def test_an_app_that_cannot_be_loaded_says_which_half_is_wrong(module, target, message):
    module("from baton.engine import Engine\nengine = Engine()\nnumber = 5\n")
    with pytest.raises(ConfigError, match=message):
        load_engine(target)


def test_an_import_that_the_app_itself_lacks_is_not_blamed_on_the_app(module):
    module("import no_such_library\n")
    with pytest.raises(ConfigError, match="imports 'no_such_library', which is not installed"):
        load_engine("user_app:engine")


def test_rewards_of_a_flow_are_values_or_abstentions():
    samples = Samples(["g/0", "g/1", "g/2"])
    group = Group(PromptItem("g", [], ""), samples, ["a", "b", "c"])
    scored = group.with_rewards([1.0, None, 0.0])
    assert scored.samples.reward_status.tolist() == [RewardStatus.VALUE, RewardStatus.ABSTAIN, RewardStatus.VALUE]
    np.testing.assert_array_equal(scored.samples.rewards, np.asarray([1, np.nan, 0], np.float32))
    with pytest.raises(ValueError, match="group g has 3 responses but got 1 rewards"):
        group.with_rewards([1.0])
