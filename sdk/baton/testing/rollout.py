"""FakeRollout: a replica whose model is a function. Its tokens are the bytes of the text."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable

import grpc
import numpy as np

from baton.api.common.v1 import weights_pb2
from baton.api.rollout.v1 import control_pb2
from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.api.rollout.v1.control_pb2_grpc import RolloutControlServiceServicer
from baton.api.rollout.v1.rollout_pb2_grpc import RolloutServiceServicer
from baton.errors import DigestMismatchError, InvalidRequestError, NotFoundError, NotReadyError, StalePolicyError
from baton.samples import FinishReason, Ragged, Samples
from baton.testing import weights

Respond = Callable[[str, int, int], str]
"""(prompt text, index of the response, policy version) -> response."""


class FakeRollout(RolloutServiceServicer, RolloutControlServiceServicer):
    """One replica. Scripted by its attributes, which a test may change while it serves."""

    def __init__(self, respond: Respond = lambda prompt, index, version: str(index), *, delay_s: float = 0.0) -> None:
        """`delay_s` passes before each group."""
        self.respond = respond
        self.delay_s = delay_s
        self.max_model_len = 4096
        """In bytes; a longer prompt is refused."""
        self.policy_version = 0
        self.weights_digest = ""
        self.sampled_digest: str | None = None
        """A defect: samples carry this digest instead of the committed one."""
        self.requests: list[pb.GenerateRequest] = []
        """Every Generate request so far."""
        self.updates: list[pb.UpdateWeightsRequest] = []
        """Every UpdateWeights request so far."""
        self._instance_id = uuid.uuid4().hex
        self._state = pb.REPLICA_STATE_HEALTHY
        self._group = weights_pb2.WeightGroup()
        self._arrived: tuple[int, str] | None = None
        self._running = 0
        self._generated = 0

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        self._check(request)
        for prompt in request.prompts:
            self._running += 1
            try:
                await asyncio.sleep(self.delay_s)
            finally:
                self._running -= 1
            yield self._answer(prompt, request)

    async def MeasurePrompts(
        self, request: pb.MeasurePromptsRequest, context: grpc.aio.ServicerContext
    ) -> pb.MeasurePromptsResponse:
        return pb.MeasurePromptsResponse(lengths=[len(_prompt_text(prompt).encode()) for prompt in request.prompts])

    async def GetStatus(self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(
            state=self._state, policy_version=self.policy_version, weights_digest=self.weights_digest, model="fake",
            max_model_len=self.max_model_len, workers=1, running_requests=self._running, generated_tokens=self._generated,
            instance_id=self._instance_id, devices=["cpu"],
        )  # fmt: skip

    async def UpdateWeights(
        self, request: pb.UpdateWeightsRequest, context: grpc.aio.ServicerContext
    ) -> pb.UpdateWeightsResponse:
        self.updates.append(request)
        if self._state == pb.REPLICA_STATE_PAUSED:
            raise NotReadyError("no weights can be taken: it is paused; call Resume")
        if not request.group.senders and request.group.group_id != self._group.group_id:
            raise NotFoundError(f"weight group {request.group.group_id} is none that this replica is in; send all of it")
        group = request.group if request.group.senders else self._group
        self._state = pb.REPLICA_STATE_STALE
        payload = await weights.receive(group, request.timeout_s)
        self._state, self._group = pb.REPLICA_STATE_UPDATING, group
        self._arrived = (request.policy_version, weights.digest(payload))
        return pb.UpdateWeightsResponse(weights_digest=self._arrived[1], bytes=len(payload))

    async def CommitWeights(
        self, request: pb.CommitWeightsRequest, context: grpc.aio.ServicerContext
    ) -> pb.CommitWeightsResponse:
        if self._state == pb.REPLICA_STATE_PAUSED:
            raise NotReadyError(f"version {request.policy_version} cannot be committed: it is paused; call Resume")
        if (request.policy_version, request.weights_digest) != self._arrived:
            asked = (request.policy_version, request.weights_digest)
            raise DigestMismatchError(f"was asked to commit {asked}, but {self._arrived} arrived")
        self.policy_version, self.weights_digest = self._arrived
        self._state = pb.REPLICA_STATE_HEALTHY
        return pb.CommitWeightsResponse(policy_version=self.policy_version)

    async def Pause(self, request: control_pb2.PauseRequest, context: grpc.aio.ServicerContext) -> control_pb2.PauseResponse:
        self._state = pb.REPLICA_STATE_PAUSED
        async with asyncio.timeout(request.timeout_s):
            while self._running:
                await asyncio.sleep(0.01)
        return control_pb2.PauseResponse()

    async def Resume(
        self, request: control_pb2.ResumeRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.ResumeResponse:
        self._state = pb.REPLICA_STATE_HEALTHY
        return control_pb2.ResumeResponse()

    def _check(self, request: pb.GenerateRequest) -> None:
        if self._state != pb.REPLICA_STATE_HEALTHY:
            raise NotReadyError(f"replica is {pb.ReplicaState.Name(self._state)}; a whole weight update ends that")
        exact = request.HasField("exact_version") and request.exact_version != self.policy_version
        if exact or request.min_version > self.policy_version:
            wanted = request.exact_version if exact else request.min_version
            raise StalePolicyError(f"version {wanted} was asked for, but version {self.policy_version} is served")
        for prompt in request.prompts:
            if (length := len(_prompt_text(prompt).encode())) > self.max_model_len:
                raise InvalidRequestError(
                    f"prompt {prompt.group_id} has {length} tokens, but the model's context is {self.max_model_len}"
                )

    def _answer(self, prompt: pb.Prompt, request: pb.GenerateRequest) -> pb.GenerateResponse:
        text = _prompt_text(prompt)
        size = request.sampling.n or 1
        limit = request.sampling.max_new_tokens or self.max_model_len
        full = [self.respond(text, index, self.policy_version).encode() for index in range(size)]
        cut = [list(response[:limit]) for response in full]
        self._generated += sum(len(response) for response in cut)
        finish = [FinishReason.LENGTH if len(response) > limit else FinishReason.STOP for response in full]
        digest = self.weights_digest if self.sampled_digest is None else self.sampled_digest
        temperature = request.sampling.temperature if request.sampling.HasField("temperature") else 1.0
        samples = Samples(
            sample_ids=[f"{prompt.group_id}/{index}" for index in range(size)],
            group_ids=[prompt.group_id] * size,
            episode_ids=np.full(size, request.episode_id, np.int64),
            prompt_ids=Ragged.of([list(text.encode())] * size, np.int32),
            response_ids=Ragged.of(cut, np.int32),
            rollout_logprobs=Ragged.of([[-1.0] * len(response) for response in cut], np.float32),
            model_logprobs=Ragged.of([[-1.0] * len(response) for response in cut], np.float32),
            finish_reasons=np.asarray(finish, np.uint8),
            policy_version_min=np.full(size, self.policy_version, np.int64),
            policy_version_max=np.full(size, self.policy_version, np.int64),
            weights_digests=[digest] * size,
            temperatures=np.full(size, temperature, np.float32),
            span_versions=Ragged.of([[self.policy_version]] * size, np.int64),
            span_tokens=Ragged.of([[len(response)] for response in cut], np.int32),
        )
        texts = [bytes(response).decode(errors="replace") for response in cut]
        return pb.GenerateResponse(samples=samples.to_proto(), texts=texts)


def _prompt_text(prompt: pb.Prompt) -> str:
    match prompt.WhichOneof("input"):
        case "chat":
            return "\n".join(message.content for message in prompt.chat.messages)
        case "text":
            return prompt.text
        case "token_ids":
            return bytes(np.frombuffer(prompt.token_ids, "<i4").astype(np.uint8)).decode(errors="replace")
    raise InvalidRequestError(f"prompt {prompt.group_id} has no input")
