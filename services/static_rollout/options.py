"""The run file's sampling options, overridden per request, as what a static batch samples one prompt's rows with."""

from collections.abc import Sequence
from dataclasses import dataclass

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.config.policy import PolicyConfig
from baton.errors import InvalidRequestError
from services.rollout.generation import room_for_response
from services.static_rollout.draw import Sampling

OFFERED = {"n", "temperature", "top_p", "top_k", "max_new_tokens", "ignore_eos", "seed"}
"""Overrides that a static batch carries out."""


@dataclass(frozen=True, slots=True)
class RowOptions:
    """Of all `n` responses to one prompt."""

    n: int
    sampling: Sampling
    limit: int
    """Most tokens of each response."""
    seed: int | None
    """The request's own; None: the replica's."""
    ignore_eos: bool
    stop: Sequence[str]
    stop_ids: Sequence[int]
    """Tokens that end the response whatever `ignore_eos` says."""

    @property
    def temperature(self) -> float:
        """0: greedy."""
        return self.sampling.temperature


def row_options(
    config: PolicyConfig, overrides: pb.SamplingParams, group_id: str, prompt_tokens: int, context: int,
    stop_ids: Sequence[int] = (),
) -> RowOptions:  # fmt: skip
    """Returns what to sample one prompt of `prompt_tokens` with, in a model of `context` tokens. `stop_ids`: of the run
    file's stop texts that are special tokens.

    Raises InvalidRequestError, naming the group, if the prompt is empty or leaves no room, or if options make no sense.
    """
    if prompt_tokens < 1:
        raise InvalidRequestError(f"prompt {group_id} is empty; give it at least one token")
    given = {field.name: value for field, value in overrides.ListFields()}
    if odd := sorted(set(given) - OFFERED):
        raise InvalidRequestError(
            f"sampling options of group {group_id}: {', '.join(odd)} is not offered by static batches; leave it out, or set "
            "models.policy.generator to vllm"
        )
    room = room_for_response(group_id, prompt_tokens, context)
    limit = given.get("max_new_tokens", config.response_limit)
    options = RowOptions(
        n=given.get("n", config.n),
        sampling=Sampling(
            temperature=given.get("temperature", config.effective_temperature),
            top_k=given.get("top_k", config.top_k),
            top_p=given.get("top_p", config.top_p),
        ),
        limit=room if limit is None else min(limit, room),
        seed=given.get("seed"),
        ignore_eos=given.get("ignore_eos", config.ignore_eos),
        stop=config.stop_tokens,
        stop_ids=stop_ids,
    )
    sampling = options.sampling
    rules = {
        f"n must be at least 1, got {options.n}": options.n >= 1,
        f"temperature must not be negative, got {sampling.temperature}": sampling.temperature >= 0,
        f"top_p must be in (0, 1], got {sampling.top_p}": 0 < sampling.top_p <= 1,
        f"top_k must be -1 or 0 (all) or more, got {sampling.top_k}": sampling.top_k >= -1,
        f"max_new_tokens must be at least 1, got {limit}": options.limit >= 1,
        f"n must be 1 at temperature 0, where all responses are the same, got {options.n}":
            options.n == 1 or sampling.temperature > 0,
    }  # fmt: skip
    for broken in (rule for rule, holds in rules.items() if not holds):
        raise InvalidRequestError(f"sampling options of group {group_id}: {broken}")
    return options
