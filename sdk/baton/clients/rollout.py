"""Client of one rollout replica."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

import numpy as np

from baton.api.common.v1 import weights_pb2
from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.api.rollout.v1.rollout_pb2_grpc import RolloutServiceStub
from baton.channel import ServiceClient
from baton.clients.rollout_control import IN_FLIGHT, InFlight
from baton.errors import InvalidRequestError
from baton.samples import Samples


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to answer: exactly one of `token_ids`, `text` or `chat` (a list of {"role", "content"})."""

    group_id: str
    token_ids: Sequence[int] | None = None
    text: str | None = None
    chat: Sequence[dict[str, str]] | None = None
    continues: Sequence[int] = ()
    """Tokens of an earlier prompt and its response: the input must begin with exactly these, or it is refused."""

    def to_proto(self) -> pb.Prompt:
        """The wire form."""
        message = pb.Prompt(group_id=self.group_id)
        if self.token_ids is not None:
            message.token_ids = np.asarray(self.token_ids, "<i4").tobytes()
        if self.text is not None:
            message.text = self.text
        if self.chat is not None:
            message.chat.messages.extend(pb.ChatMessage(**turn) for turn in self.chat)
        message.continues = np.asarray(self.continues, "<i4").tobytes()
        return message


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Overrides of the run file's sampling options; None keeps the run file's value."""

    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_new_tokens: int | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | Sequence[str] | None = None
    """Texts that end a response, or one."""
    use_beam_search: bool | None = None
    prompt_logprobs: int | None = None
    """Log-probabilities to return for each prompt token, besides its own: so many of the likeliest."""

    def to_proto(self) -> pb.SamplingParams:
        """The wire form. Raises InvalidRequestError for a stop text that is none."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if self.stop is not None:
            given["stop"] = [self.stop] if isinstance(self.stop, str) else list(self.stop)
            if odd := [text for text in given["stop"] if not isinstance(text, str)]:
                raise InvalidRequestError(f"stop: got {odd[0]!r}; must be texts; of tokens, give their text")
        return pb.SamplingParams(**given)


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The raw model's log-probabilities of a prompt's tokens from the second on: each token's own first, then the likeliest.

    Both are [prompt tokens - 1, columns].
    """

    token_ids: np.ndarray
    logprobs: np.ndarray

    @classmethod
    def from_proto(cls, message: pb.PromptLogprobs) -> Self:
        """Reads the wire form."""
        shape = (-1, message.columns)
        return cls(
            np.frombuffer(message.token_ids, "<i4").reshape(shape), np.frombuffer(message.logprobs, "<f4").reshape(shape)
        )


@dataclass(frozen=True, slots=True)
class Generation:
    """One or more finished groups: samples without rewards, the responses' texts, and by group what the prompts had."""

    samples: Samples
    texts: list[str]
    prompt_logprobs: dict[str, PromptLogprobs] = field(default_factory=dict)


class RolloutClient(ServiceClient):
    """Generates with one replica and moves it to new weights. Errors: see `baton.errors`."""

    SERVICE = "baton.api.rollout.v1.RolloutService"
    STUB = RolloutServiceStub
    RETRIED = ("GetStatus", "CommitWeights")

    async def generate(
        self, prompts: Sequence[Prompt], *, sampling: SamplingParams | None = None, episode_id: int = 0,
        exact_version: int | None = None, min_version: int | None = None, evaluation: bool = False, timeout_s: float = 600.0,
    ) -> AsyncIterator[Generation]:  # fmt: skip
        """Yields each group when its last response is done. In an `evaluation` the run file's `eval_` options hold.

        Waits, within `timeout_s`, while the replica has as much to do as it may. Raises StalePolicyError if the replica does
        not serve the version asked for, InvalidRequestError if a prompt is longer than the model's context.
        """
        request = pb.GenerateRequest(
            episode_id=episode_id, prompts=[prompt.to_proto() for prompt in prompts],
            sampling=(sampling or SamplingParams()).to_proto(), exact_version=exact_version, min_version=min_version,
            evaluation=evaluation,
        )  # fmt: skip
        async for message in self._stream_once_there_is_room("Generate", request, timeout_s):
            found = {one.group_id: PromptLogprobs.from_proto(one) for one in message.prompt_logprobs}
            yield Generation(Samples.from_proto(message.samples), list(message.texts), found)

    async def measure_prompts(self, prompts: Sequence[Prompt], *, timeout_s: float | None = None) -> list[int]:
        """What each prompt is ranked by: its tokens, unless the run file says words. Raises as `generate`."""
        request = pb.MeasurePromptsRequest(prompts=[prompt.to_proto() for prompt in prompts])
        return list((await self._call("MeasurePrompts", request, timeout_s)).lengths)

    async def get_status(self) -> pb.GetStatusResponse:
        """What the replica serves now."""
        return await self._call("GetStatus", pb.GetStatusRequest())

    async def update_weights(
        self, policy_version: int, group: weights_pb2.WeightGroup, *, first_rank: int, timeout_s: float,
        begin_s: float = 60.0, in_flight: InFlight = "abort", verify: bool = False,
    ) -> pb.UpdateWeightsResponse:  # fmt: skip
        """Receives new weights, for which the engine has `begin_s` to get ready; see `baton.weights`, which calls both
        sides."""
        request = pb.UpdateWeightsRequest(
            policy_version=policy_version, group=group, first_rank=first_rank, timeout_s=timeout_s, begin_s=begin_s,
            in_flight=IN_FLIGHT[in_flight], verify=verify,
        )  # fmt: skip
        return await self._call("UpdateWeights", request, begin_s + timeout_s + 5)

    async def commit_weights(
        self, policy_version: int, weights_digest: str, *, timeout_s: float = 60.0
    ) -> pb.CommitWeightsResponse:  # fmt: skip
        """Serves the received version, if the digest is the one that arrived."""
        request = pb.CommitWeightsRequest(
            policy_version=policy_version, weights_digest=weights_digest, timeout_s=timeout_s
        )  # fmt: skip
        return await self._call("CommitWeights", request, timeout_s + 5)
