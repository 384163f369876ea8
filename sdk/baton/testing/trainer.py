"""FakeTrainer: leases, counts and acknowledges like a trainer of one rank, and learns nothing."""

import asyncio
import json
import uuid
from collections.abc import Callable
from pathlib import Path

import grpc

from baton.api.trainer.v1 import trainer_pb2 as pb
from baton.api.trainer.v1.trainer_pb2_grpc import TrainerServiceServicer
from baton.checkpoint_files import FORMAT, MARKER, SUMS, digest_of, sums_of
from baton.clients.buffer import BufferClient
from baton.errors import BatonError, DigestMismatchError, NotFoundError
from baton.samples import RewardStatus, Samples
from baton.testing import weights

Measure = Callable[[int, Samples], dict[str, float]]
"""(global step, the step's samples) -> metrics."""


def mean_reward_loss(global_step: int, samples: Samples) -> dict[str, float]:
    """The default metrics: a loss that falls as rewards rise."""
    scored = samples.rewards[samples.reward_status == RewardStatus.VALUE]
    return {"loss": float(-scored.mean()) if len(scored) else 0.0, "grad_norm": 1.0, "mismatch_kl": 0.0}


class FakeTrainer(TrainerServiceServicer):
    """The weights are a line of text that names the global step. Scripted by its attributes."""

    def __init__(self, measure: Measure = mean_reward_loss, *, delay_s: float = 0.0) -> None:
        """`delay_s` passes in each optimizer step."""
        self.measure = measure
        self.delay_s = delay_s
        self.global_step = 0
        self.requests: list[pb.TrainStepRequest] = []
        """Every TrainStep request so far."""
        self.trained: list[Samples] = []
        """The global batch of every step, in order."""
        self.checkpoints: list[str] = []
        self.writing_s = 0.0
        """How long a checkpoint is written in the background."""
        self.write_error: BatonError | None = None
        """What a checkpoint that is written in the background fails with."""
        self._lessee = f"fake-trainer-{uuid.uuid4().hex}"
        self._answers: dict[tuple[str, int, int, int], pb.TrainStepResponse] = {}
        self._sender: weights.Sender | None = None
        self._groups = 0

    async def TrainStep(self, request: pb.TrainStepRequest, context: grpc.aio.ServicerContext) -> pb.TrainStepResponse:
        self.requests.append(request)
        step = (request.run_id, request.episode_id, request.pass_index, request.step_index)
        if step not in self._answers:
            self._answers[step] = await self._step(request)
        return self._answers[step]

    async def _step(self, request: pb.TrainStepRequest) -> pb.TrainStepResponse:
        async with BufferClient(request.buffer_address, timeout_s=10.0) as buffer:
            lease = buffer.lease(
                request.run_id, request.episode_id, pass_index=request.pass_index, step_index=request.step_index,
                wait_s=10.0, lessee=self._lessee,
            )  # fmt: skip
            batches = [batch async for batch in lease]
            samples = Samples.concat([batch.samples for batch in batches])
            if not request.any_weights:
                _check_digests(samples, request.expected_digests)
            await asyncio.sleep(self.delay_s)
            self.global_step += 1
            self.trained.append(samples)
            await buffer.ack(request.run_id, request.episode_id, batches[0].lease_id, global_step=self.global_step)
        return pb.TrainStepResponse(
            global_step=self.global_step, metrics=self.measure(self.global_step, samples), samples=len(samples),
            response_tokens=int(samples.response_ids.lengths.sum()), computed_tokens=int(samples.token_counts().sum()),
        )  # fmt: skip

    async def OpenWeightGroup(
        self, request: pb.OpenWeightGroupRequest, context: grpc.aio.ServicerContext
    ) -> pb.OpenWeightGroupResponse:
        if self._sender:
            self._sender.close()
        self._groups += 1
        self._sender = await weights.Sender.open(f"fake-{self._groups}", request.receivers)
        return pb.OpenWeightGroupResponse(group=self._sender.group)

    async def PublishWeights(
        self, request: pb.PublishWeightsRequest, context: grpc.aio.ServicerContext
    ) -> pb.PublishWeightsResponse:
        if self._sender is None or self._sender.group.group_id != request.group_id:
            raise NotFoundError(f"there is no open weight group {request.group_id}; call OpenWeightGroup")
        payload = self._payload()
        await self._sender.send(payload, request.timeout_s)
        return pb.PublishWeightsResponse(weights_digest=weights.digest(payload), bytes=len(payload))

    async def SaveCheckpoint(
        self, request: pb.SaveCheckpointRequest, context: grpc.aio.ServicerContext
    ) -> pb.SaveCheckpointResponse:
        path = Path(request.directory) / f"step-{self.global_step}"
        path.mkdir(parents=True, exist_ok=True)
        (path / "weights.txt").write_bytes(self._payload())
        (path / MARKER).write_text(json.dumps({"format": FORMAT, "run": json.loads(request.run or "null")}))
        (path / SUMS).write_text(sums_of({MARKER: digest_of(path / MARKER)}))
        self.checkpoints.append(str(path))
        return pb.SaveCheckpointResponse(path=str(path), bytes=len(self._payload()))

    async def AwaitCheckpoint(
        self, request: pb.AwaitCheckpointRequest, context: grpc.aio.ServicerContext
    ) -> pb.AwaitCheckpointResponse:
        if request.path not in self.checkpoints:
            raise NotFoundError(f"no save of {request.path} was begun")
        await asyncio.sleep(self.writing_s)
        if self.write_error:
            raise self.write_error
        return pb.AwaitCheckpointResponse(bytes=len((Path(request.path) / "weights.txt").read_bytes()))

    async def LoadCheckpoint(
        self, request: pb.LoadCheckpointRequest, context: grpc.aio.ServicerContext
    ) -> pb.LoadCheckpointResponse:
        file = Path(request.path) / "weights.txt"
        if not file.is_file():
            raise NotFoundError(f"{request.path} is no checkpoint")
        self.global_step = json.loads(file.read_bytes())["global_step"]
        self._answers.clear()
        return pb.LoadCheckpointResponse(global_step=self.global_step)

    async def ExportModel(self, request: pb.ExportModelRequest, context: grpc.aio.ServicerContext) -> pb.ExportModelResponse:
        path = Path(request.directory)
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text('{"model_type": "fake"}')
        return pb.ExportModelResponse(bytes=len(self._payload()))

    async def GetStatus(self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(
            model="fake", global_step=self.global_step, tensor_parallel_size=1, pipeline_parallel_size=1,
            data_parallel_size=1, max_sequence_tokens=4096,
        )  # fmt: skip

    def _payload(self) -> bytes:
        return json.dumps({"global_step": self.global_step}).encode()


def _check_digests(samples: Samples, expected: dict[int, str]) -> None:
    for version, digest in zip(samples.policy_version_max, samples.weights_digests, strict=True):
        if expected.get(int(version)) != digest:
            raise DigestMismatchError(f"a sample of version {version} has {digest}, expected {expected.get(int(version))}")
