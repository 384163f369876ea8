"""What the service asks of an engine, whichever it is, and the samples that it makes of the answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.errors import InvalidRequestError
from baton.samples import FinishReason, Ragged, Samples


@dataclass(frozen=True, slots=True)
class Completion:
    """One response to a prompt."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    """Of each token under the distribution that it was drawn from, if it was drawn."""
    model_logprobs: Sequence[float]
    """Of each token under the raw model."""
    finish: FinishReason
    text: str
    loads: np.ndarray
    """Which set of weights that the engine took sampled each token, never falling: int64 [tokens]."""
    uncut_logprobs: Sequence[float] | None = None
    """Of each token under the whole distribution at the sample's temperature; None: one of the other two says it."""
    load: int | None = None
    """The set of weights that a response without tokens counts as; None: that which is loaded."""


@dataclass(frozen=True, slots=True)
class Answer:
    """All responses to one prompt; if asked for, also the prompt's token ids and log-probabilities [tokens - 1, columns]."""

    completions: list[Completion]
    prompt_logprobs: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a group's samples came from."""

    group_id: str
    episode_id: int
    served: Mapping[int, tuple[int, str]]
    """Policy version and weights digest of each set of weights that the engine took."""
    load: int
    """The set that is loaded: that of a response without tokens."""


class Params(Protocol):
    """What one prompt is sampled with; the rest is between an engine and itself."""

    @property
    def n(self) -> int:
        """Responses."""

    @property
    def temperature(self) -> float:
        """0: nothing is drawn."""


class RolloutEngine(Protocol):
    """The few verbs that the service needs."""

    tokenizer: Any
    max_model_len: int
    vocabulary: int
    workers: int
    devices: Sequence[str]
    """One for each worker."""
    model_facts: Mapping[str, str]
    """What weights must fit."""
    cache_blocks: int
    """Of the key-value cache; 0: it has none that outlives a batch."""
    cache_block_tokens: int
    staging_bytes: int
    """Memory of each worker for weights that arrive while it generates; 0: it pauses while they do."""
    loads: int
    """How many sets of weights it was given; 0: it has those that it was started with."""
    adapters: "HeldAdapters | None"
    """None: it takes none."""
    interruptible: bool
    """Whether responses under way can be aborted, stand still, or go on with new weights."""

    @property
    def dead(self) -> bool:
        """Whether it will never answer again; the replica's process ends then."""

    def params(self, overrides: pb.SamplingParams, group_id: str, prompt_tokens: int, *, evaluation: bool) -> Params:
        """The run file's sampling options, overridden. Raises InvalidRequestError, naming the group, if they are wrong."""

    def length(self, token_ids: list[int]) -> int:
        """What a prompt is ranked by."""

    async def generate(self, group_id: str, token_ids: list[int], params: Params) -> Answer:
        """All `params.n` responses to one prompt. Cancelling it lets go of the request."""

    async def halt(self, *, keep: bool) -> None:
        """Stands still for other weights, until `resume`; if nothing is under way, maybe only when `halted` returns.
        Responses under way end, or if `keep`, go on afterwards."""

    async def halted(self) -> None:
        """Returns when it stands still, after `halt`; other weights may be sent before."""

    async def update_weights(
        self, group: bytes, group_id: str, first_rank: int, timeout_s: float, *, verify: bool
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Receives a whole set of weights, number `loads` from then on, after `halt`, and returns each worker's report.

        Joins the group first if it is a new one.
        """

    async def stage_weights(
        self, group: bytes, group_id: str, first_rank: int, timeout_s: float, *, verify: bool
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Receives a whole set of weights into memory of its own, and goes on generating; if `staging_bytes` suffice."""

    async def load_staged(self, *, verify: bool) -> list[dict[str, Any]]:
        """Loads what was staged; the rest is as with `update_weights`."""

    async def load_adapter(self, names: Sequence[str], multiplier: float) -> list[dict[str, Any]]:
        """Takes what was staged, an adapter of these tensors, as set number `loads`, while it generates; see `Adapters`."""

    async def resume(self) -> None:
        """Takes requests again; nothing is cached of older weights."""

    async def abort(self, group_ids: Sequence[str]) -> None:
        """Ends groups that have begun: `generate` returns what they have. Of an interruptible engine only."""

    async def freeze(self) -> None:
        """Has all responses stand still until `resume`. Of an interruptible engine only."""

    def check_sleep(self) -> None:
        """Raises InvalidRequestError if `sleep` would give nothing back; without that, `sleep` and `wake` are not called."""

    async def sleep(self, level: int) -> None:
        """Gives the accelerator's memory back."""

    async def wake(self) -> None:
        """Takes it again."""


class HeldAdapters(Protocol):
    """The low-rank adapters of an engine, by number of the set of weights that each came as."""

    @property
    def loads(self) -> list[int]:
        """Those that requests are, or may be, computed with, oldest first."""

    def serve(self, load: int) -> None:
        """Requests that begin from now on get this one; those under way go on with theirs."""

    async def make_room(self, drain_s: float | None) -> None:
        """Frees all but the one that is served, when the responses of others are done, or aborted after `drain_s`."""


def room_for_response(group_id: str, prompt_tokens: int, context: int) -> int:
    """Most tokens of a response in a model of `context` tokens. Raises InvalidRequestError if there is no room for one."""
    if (room := context - prompt_tokens) < 1:
        raise InvalidRequestError(
            f"prompt {group_id} has {prompt_tokens} tokens, which leaves no room in a context of {context}; "
            "shorten the prompt, or raise models.policy.seq_length if the model allows it"
        )
    return room


def to_samples(prompt: Sequence[int], completions: Sequence[Completion], origin: Origin, temperature: float) -> Samples:
    """One group's samples, without rewards. At `temperature` 0 nothing was drawn: every token's probability was 1. Either
    all completions have `uncut_logprobs` or none."""
    count = len(completions)
    spans = [_spans(one.loads, origin.load if one.load is None else one.load) for one in completions]
    oldest, newest = ([origin.served[one.loads[at]] for one in spans] for at in (0, -1))
    drawn = [completion.logprobs if temperature else [0.0] * len(completion.logprobs) for completion in completions]
    uncut = [completion.uncut_logprobs for completion in completions]
    return Samples(
        sample_ids=[f"{origin.group_id}/{index}" for index in range(count)],
        group_ids=[origin.group_id] * count,
        episode_ids=np.full(count, origin.episode_id, np.int64),
        prompt_ids=Ragged.of([prompt] * count, np.int32),
        response_ids=Ragged.of([completion.token_ids for completion in completions], np.int32),
        rollout_logprobs=Ragged.of(drawn, np.float32),
        model_logprobs=Ragged.of([completion.model_logprobs for completion in completions], np.float32),
        uncut_logprobs=None if any(one is None for one in uncut) else Ragged.of(uncut, np.float32),
        finish_reasons=np.array([completion.finish for completion in completions], np.uint8),
        policy_version_min=np.array([version for version, _ in oldest], np.int64),
        policy_version_max=np.array([version for version, _ in newest], np.int64),
        weights_digests=[digest for _, digest in newest],
        temperatures=np.full(count, temperature, np.float32),
        span_versions=Ragged.of([[origin.served[load][0] for load in one.loads] for one in spans], np.int64),
        span_tokens=Ragged.of([one.tokens for one in spans], np.int32),
    )


@dataclass(frozen=True, slots=True)
class _Spans:
    """Segments of a response: the weights that sampled each, and its tokens."""

    loads: list[int]
    tokens: list[int]


def _spans(loads: np.ndarray, load: int) -> _Spans:
    if not len(loads):
        return _Spans([load], [0])
    starts = np.flatnonzero(np.diff(loads, prepend=-1))
    return _Spans(loads[starts].tolist(), np.diff(starts, append=len(loads)).tolist())
