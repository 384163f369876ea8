"""How the rollout engine samples: the part of `models.policy` that one request may override."""

from typing import Annotated, Any, Self

from pydantic import Field

from baton.config.base import Count, NonNegativeFloat, PositiveInt
from baton.config.roles import RoleConfig

TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=2)]

EVALUATION_TWINS = (
    "temperature",
    "top_k",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)

WHOLE = {
    "top_p": (1.0,), "top_k": (-1, 0), "presence_penalty": (0.0,), "frequency_penalty": (0.0,), "repetition_penalty": (1.0,),
}  # fmt: skip
"""Options that change what is drawn from besides the temperature, and their values that do not."""


def _limit_is_given(data: dict[str, Any]) -> bool:
    return data["max_new_tokens"] is not None


class SamplingConfig(RoleConfig):
    """Sampling options. Those that start with `eval_` replace their twins in an evaluation."""

    n: PositiveInt = 1
    """Responses to each prompt; they multiply the episode's samples. With beam search, the width of the
    beam."""

    temperature: NonNegativeFloat = 1.0
    """Divisor of the logits; lower is more deterministic. 0: the likeliest token always."""

    top_p: TopP = 1.0
    """Sample among the likeliest tokens whose probabilities add up to this. 1: among all."""

    top_k: TopK = -1
    """Sample among this many of the likeliest tokens. -1 or 0: among all."""

    use_beam_search: bool = False
    """Search for the `n` likeliest responses instead of sampling; the temperature is then 0. An evaluation takes the first
    of them. Not with what changes the distribution (top_p, top_k, penalties), stop texts or prompt_logprobs."""

    presence_penalty: Penalty = 0.0
    """Subtracted from the logit of every token that the response has. 0: none."""

    frequency_penalty: Penalty = 0.0
    """Subtracted from a token's logit for every time that the response has it. 0: none."""

    repetition_penalty: RepetitionPenalty = 1.0
    """Divides the logits of tokens that prompt or response have. 1: no effect."""

    eval_temperature: NonNegativeFloat = 1.0
    """`temperature` of an evaluation."""

    eval_top_p: TopP = 1.0
    """`top_p` of an evaluation."""

    eval_top_k: TopK = -1
    """`top_k` of an evaluation."""

    eval_presence_penalty: Penalty = 0.0
    """`presence_penalty` of an evaluation."""

    eval_frequency_penalty: Penalty = 0.0
    """`frequency_penalty` of an evaluation."""

    eval_repetition_penalty: RepetitionPenalty = 1.0
    """`repetition_penalty` of an evaluation."""

    ignore_eos: bool = False
    """Go on after the end-of-sequence token, up to the length limit."""

    stop_token_list: str | None = None
    """Texts that end a response, separated by semicolons. null: the end-of-sequence token alone."""

    seq_length: Annotated[int, Field(ge=2)] = 1024
    """Upper limit on prompt and response together, in tokens. A given answer that is longer is refused."""

    max_new_tokens: PositiveInt | None = None
    """Upper limit on the response, in tokens, while `new_token_limit` is on. null: none but `seq_length`."""

    new_token_limit: bool = Field(default_factory=_limit_is_given)
    """true: a response has at most `max_new_tokens` tokens. false: a response may fill `seq_length`. A prompt
    is never cut: one that leaves no room for a response is refused. Left out: true if `max_new_tokens` is
    given."""

    prompt_logprobs: Count | None = None
    """Log-probabilities to return for each prompt token: the token's own and so many of the likeliest. A flow
    finds them in its groups; nothing else uses them. null: none, which saves memory."""

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """The texts in `stop_token_list`."""
        return tuple(text for text in (self.stop_token_list or "").split(";") if text)

    @property
    def response_limit(self) -> int | None:
        """Upper limit on a response, in tokens; None when only `seq_length` limits it."""
        return self.max_new_tokens if self.new_token_limit else None

    def for_evaluation(self) -> Self:
        """A copy in which the `eval_` options have taken the place of their twins."""
        return self.model_copy(update={name: getattr(self, f"eval_{name}") for name in EVALUATION_TWINS})
