"""`prompts` and `rewards`: what the policy is asked, and what its answers are worth."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from baton.config.base import Count, Fraction, FunctionName, PositiveInt, Seconds, Section


def _check_template(text: str) -> str:
    if "{prompt}" not in text:
        raise ValueError("must contain {prompt}, which stands for the prompt; add {prompt} where it belongs")
    return text


class _Prompts(Section):
    shuffle: bool = False
    """Visit the prompts in a random order, a new one on every pass over the data set."""

    seed: Count | None = None
    """Seed of the order and of generated data. null: `runtime.seed`."""

    system_prompt: str | None = None
    """System message put before every prompt. null: none."""

    holdout: Count = 0
    """Prompts at the end of the data that are not trained on: evaluations are on them. 0: none."""

    template: Annotated[str, AfterValidator(_check_template)] | None = None
    """Text of the user message, in which {prompt} stands for the prompt. null: the prompt alone."""


class ReasoningGymPrompts(_Prompts):
    """Procedurally generated tasks, which come with verifiers, and with an answer each that `sft` learns."""

    source: Literal["reasoning_gym"]
    """Where the prompts come from."""

    task: str
    """Name of the task, as `chain_sum`."""

    params: dict[str, Any] = Field(default_factory=dict)
    """Settings of the task, passed on as they are."""

    size: PositiveInt = 10000
    """Number of prompts to generate."""


class _Answered(_Prompts):
    chosen_key: str = "chosen"
    """Key of the better answer to the prompt, a text; of `dpo` and `reward_model`."""

    rejected_key: str = "rejected"
    """Key of the worse answer."""

    completion_key: str = "completion"
    """Key of the answer to learn; of `sft`."""


class JsonlPrompts(_Answered):
    """Prompts from a JSON Lines file, one object a line; the object's other keys travel with the sample."""

    source: Literal["jsonl"]
    """Where the prompts come from."""

    path: str
    """The file, relative to the working directory."""

    prompt_key: str = "prompt"
    """Key that holds the prompt: a string, or a list of chat messages."""

    def missing_file(self) -> str:
        """What to tell if there is no such file on this machine; empty if there is."""
        if Path(self.path).is_file():
            return ""
        return f"prompts.path: got {self.path!r}; there is no such file in {Path.cwd()}; correct the path, or make the file"


class AppPrompts(_Answered):
    """Prompts that the user's Python program hands to the engine."""

    source: Literal["app"]
    """Where the prompts come from."""


PromptConfig = Annotated[ReasoningGymPrompts | JsonlPrompts | AppPrompts, Field(discriminator="source")]


class RewardFunctionConfig(Section):
    """One reward function and its weight in the sum."""

    function: FunctionName
    """A built-in name, as `verifier` or `digits_only`, or `module:callable`."""

    weight: float = 1.0
    """Factor of this function's value in a sample's reward; may be negative."""

    params: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of every call."""

    timeout_s: Seconds = 10.0
    """Time limit of one call, in seconds; a call that exceeds it yields no value."""


class RewardsConfig(Section):
    """The reward functions, which run in worker processes of the coordinator."""

    functions: list[RewardFunctionConfig] = Field(default_factory=list)
    """The functions whose weighted values add up to a sample's reward. Empty: `models.reward` or the engine's
    flow gives rewards."""

    model_weight: float = 1.0
    """Factor of the score of `models.reward`, which is added to the functions' values."""

    max_error_rate: Fraction = 0.0
    """Share of an episode's rewards that may fail before the run stops: calls that raise or time out, and scores of
    `models.reward` and rewards of a flow that are no finite number. 0: the first failure stops it."""

    workers: PositiveInt = 1
    """Worker processes."""
