"""What every rank of the trainer does for each command: one method per RPC, from its request to this rank's answer.

The commands run on all ranks at once; `combine_*` makes rank 0's answer out of all ranks' parts.
"""

import asyncio
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from baton.api.common.v1 import samples_pb2, weights_pb2
from baton.api.trainer.v1 import trainer_pb2 as pb
from baton.clients import BufferClient
from baton.clients.buffer import MicroBatch
from baton.config import RunConfig
from baton.errors import BatonError, LeaseLostError, NotReadyError
from baton.samples import Samples
from services.common.weight_sync.digest import WeightsDigest
from services.trainer import whole_directory
from services.trainer.checks import SCORED, check_digests, check_lengths, require
from services.trainer.megatron import checkpoint
from services.trainer.megatron.engine import Engine
from services.trainer.megatron.hf import export_hf, finish_export
from services.trainer.objectives import objective_for
from services.trainer.packing import pack
from services.trainer.ranks import Handler
from services.trainer.sender import WeightSender
from services.trainer.step import train_step

SCORE_TOKENS = 4096
"""Samples are scored in rows of about this many tokens."""


StepKey = tuple[str, int, int, int]
"""(run, episode, pass, step)"""


def _key(request: pb.TrainStepRequest) -> StepKey:
    return request.run_id, request.episode_id, request.pass_index, request.step_index


@dataclass(frozen=True, slots=True)
class _Leased:
    """This rank's share of a step that may be taken."""

    key: StepKey
    batches: list[MicroBatch]
    seconds: float


@dataclass(slots=True)
class _Taken:
    """The last step, kept so that a repeated request gets the same answer."""

    key: StepKey
    lease_id: str
    response: pb.TrainStepResponse
    acknowledged: bool = False


class Trainer:
    """One rank's state: the engine, the sender, and which step is leased or was taken last."""

    def __init__(self, run: RunConfig, engine: Engine, source: Path) -> None:
        self._run = run
        self._config = run.models.ppo_policy
        self.engine = engine
        self._objective = objective_for(run.algorithm)
        self._source = source
        self.global_step = 0
        self._leased: _Leased | None = None
        self._taken: _Taken | None = None
        self._lessee = f"trainer-{_shared_random(engine.layout.device):016x}"
        policy_dtype = getattr(torch, run.models.policy.dtype)
        self._sender = WeightSender(engine, run.services.host, policy_dtype, run.runtime.coalesced_buffer_mb << 20)

    def handlers(self) -> dict[str, Handler]:
        """The commands, for `Ranks`."""
        return {
            "LeaseStep": lambda raw: self.lease_step(pb.TrainStepRequest.FromString(raw)),
            "TrainStep": lambda raw: self.train_step(pb.TrainStepRequest.FromString(raw)).SerializeToString(),
            "ComputeLogprobs": lambda raw: self.compute_logprobs(samples_pb2.SampleBatch.FromString(raw)),
            "OpenWeightGroup": lambda raw: self.open_group(pb.OpenWeightGroupRequest.FromString(raw)).SerializeToString(),
            "AdoptWeightGroup": lambda raw: self._sender.adopt(raw.decode()) or b"",
            "PublishWeights": lambda raw: self.publish(pb.PublishWeightsRequest.FromString(raw)).SerializeToString(),
            "SaveCheckpoint": lambda raw: self.save(Path(raw.decode())).encode(),
            "LoadCheckpoint": lambda raw: self.load(Path(raw.decode())),
            "ExportModel": lambda raw: self.export(Path(raw.decode())),
        }

    def lease_step(self, request: pb.TrainStepRequest) -> bytes:
        """Leases and checks this rank's micro-batches. A command of its own, so that one rank's refusal stops them all
        before any of them computes and waits for the others."""
        key = _key(request)
        if self._taken is None or self._taken.key != key:
            started = time.perf_counter()
            batches = asyncio.run(self._lease(request))
            try:
                for batch in batches:
                    self._objective.check(batch.samples)
                    check_lengths(batch.samples, self.engine.shape.max_positions)
                    check_digests(batch.samples, request.expected_digests)
            except BatonError as error:
                asyncio.run(self._release(request, batches[0].lease_id, str(error)))
                raise
            self._leased = _Leased(key, batches, time.perf_counter() - started)
        return b""

    def train_step(self, request: pb.TrainStepRequest) -> pb.TrainStepResponse:
        """Takes the leased step, unless it was taken before; (rank 0) acknowledges the lease, until that has succeeded."""
        key = _key(request)
        if self._taken is None or self._taken.key != key:
            self._taken = self._take(key)
        if self.engine.layout.world_rank == 0 and not self._taken.acknowledged:
            asyncio.run(self._acknowledge(request, self._taken))
        return self._taken.response

    def _take(self, key: StepKey) -> "_Taken":
        leased, self._leased = self._leased, None
        if leased is None or leased.key != key:
            raise NotReadyError(f"step {key} is not leased here; lease it first")
        started = time.perf_counter()
        report = train_step(
            self._objective, self.engine, leased.batches,
            tail=self._run.runtime.tail, share_prefix=self._config.share_prefix,
        )  # fmt: skip
        self.global_step += 1
        metrics = report.sums | {
            "grad_norm": report.update.grad_norm, "lr": report.update.learning_rate,
            "skipped": float(report.update.skipped),
            "seconds/lease": leased.seconds, "seconds/compute": time.perf_counter() - started,
        }  # fmt: skip
        response = pb.TrainStepResponse(
            global_step=self.global_step, metrics=metrics, samples=report.samples,
            response_tokens=report.response_tokens, computed_tokens=report.computed_tokens,
        )  # fmt: skip
        return _Taken(key, leased.batches[0].lease_id, response)

    async def _lease(self, request: pb.TrainStepRequest) -> list[MicroBatch]:
        layout = self.engine.layout
        async with BufferClient(request.buffer_address, timeout_s=self._run.deadlines.buffer_s) as buffer:
            stream = buffer.lease(
                request.run_id, request.episode_id, pass_index=request.pass_index, step_index=request.step_index,
                data_parallel_rank=layout.data_rank, data_parallel_size=layout.data_size,
                shuffle_seed=self._run.runtime.seed, wait_s=self._run.deadlines.generate_s, lessee=self._lessee,
                micro_batch_tokens=self._run.runtime.train_micro_batch_tokens,
            )  # fmt: skip
            return [batch async for batch in stream]

    async def _release(self, request: pb.TrainStepRequest, lease_id: str, reason: str) -> None:
        """Gives the step back, so that the ledger knows why it was not trained; whatever comes of that."""
        async with BufferClient(request.buffer_address, timeout_s=self._run.deadlines.buffer_s) as buffer:
            with suppress(BatonError):  # another rank was quicker, or the buffer is away
                await buffer.release_lease(request.run_id, request.episode_id, lease_id, reason=reason)

    async def _acknowledge(self, request: pb.TrainStepRequest, taken: _Taken) -> None:
        where = request.run_id, request.episode_id
        async with BufferClient(request.buffer_address, timeout_s=self._run.deadlines.buffer_s) as buffer:
            try:
                await buffer.ack(*where, taken.lease_id, global_step=self.global_step)
            except LeaseLostError:  # a step may take longer than its lease; nobody else may have had it since
                taken.lease_id, _ = await buffer.renew_lease(*where, taken.lease_id, lessee=self._lessee)
                await buffer.ack(*where, taken.lease_id, global_step=self.global_step)
        taken.acknowledged = True

    def compute_logprobs(self, message: samples_pb2.SampleBatch) -> bytes:
        """float32 per response token, on the last pipeline stage; nothing elsewhere. Every data-parallel rank does all."""
        samples = Samples.from_proto(message)
        require(samples, SCORED)
        check_lengths(samples, self.engine.shape.max_positions)
        rows, start, tokens = [], 0, 0
        for i, count in enumerate(samples.token_counts()):
            if i > start and tokens + count > SCORE_TOKENS:
                rows.append(samples.take(range(start, i)))
                start, tokens = i, 0
            tokens += int(count)
        rows.append(samples.take(range(start, len(samples))))
        scores = self.engine.score([pack(row, share_prefix=self._config.share_prefix) for row in rows])
        return torch.cat(scores).cpu().numpy().astype("<f4").tobytes() if scores else b""

    def open_group(self, request: pb.OpenWeightGroupRequest) -> weights_pb2.WeightGroup:
        """Starts this rank's rendezvous, if it is a sender."""
        return self._sender.open(request.receivers)

    def give_up_publishing(self) -> None:
        """From any thread: nobody waits any more for the publication that may be waiting for its receivers."""
        self._sender.give_up()

    def publish(self, request: pb.PublishWeightsRequest) -> pb.PublishWeightsResponse:
        """Sends this rank's weights, if it is a sender."""
        transfer = self._sender.publish(request.group_id, request.timeout_s)
        if transfer is None:
            return pb.PublishWeightsResponse()
        phases = weights_pb2.PhaseSeconds(**{f"{phase}_s": spent for phase, spent in transfer.seconds.items()})
        return pb.PublishWeightsResponse(weights_digest=transfer.digest.hexdigest(), bytes=transfer.bytes, phases=phases)

    def save(self, directory: Path) -> str:
        """Writes a checkpoint; returns its path."""
        facts = {"global_step": self.global_step, "objective": self._objective.state()}
        return str(checkpoint.save(self.engine, directory, facts))

    def load(self, path: Path) -> bytes:
        """Restores a checkpoint."""
        facts = checkpoint.load(self.engine, path)
        self.global_step = int(facts["global_step"])
        self._objective.restore(facts.get("objective", {}))
        self._taken = None
        return b""

    def export(self, directory: Path) -> bytes:
        """Writes a Hugging Face directory; returns this rank's bytes as decimal text."""
        layout = self.engine.layout
        partial = whole_directory.begin(directory, empty=layout.world_rank == 0)
        dist.barrier()
        written = export_hf(self.engine.policy, layout, partial) if layout.data_rank == 0 else 0
        dist.barrier()
        if layout.world_rank == 0:
            finish_export(self._source, partial, next(self.engine.policy.parameters()).dtype)
            whole_directory.finish(directory)
        return str(written).encode()


def _shared_random(device: torch.device) -> int:
    """The same random number on all ranks, another one at each start."""
    number = torch.tensor([secrets.randbits(62)], device=device)
    dist.broadcast(number, 0)
    return int(number)


def combine_steps(parts: Sequence[bytes]) -> pb.TrainStepResponse:
    """Adds up what the ranks counted; what all of them know is taken from rank 0."""
    reports = [pb.TrainStepResponse.FromString(part) for part in parts]
    known = ("grad_norm", "lr", "skipped")
    shared = {name: value for name, value in reports[0].metrics.items() if name in known or "/" in name}
    sums: dict[str, float] = {}
    for report in reports:
        for name, value in report.metrics.items():
            if name not in shared:
                sums[name] = sums.get(name, 0.0) + value
    return pb.TrainStepResponse(
        global_step=reports[0].global_step,
        metrics=sums | shared,
        samples=sum(report.samples for report in reports),
        response_tokens=sum(report.response_tokens for report in reports),
        computed_tokens=sum(report.computed_tokens for report in reports),
    )


def combine_groups(parts: Sequence[bytes]) -> weights_pb2.WeightGroup:
    """Rank 0's group with every rank's sender."""
    groups = [weights_pb2.WeightGroup.FromString(part) for part in parts]
    for other in groups[1:]:
        groups[0].senders.extend(other.senders)
    return groups[0]


def combine_publications(parts: Sequence[bytes]) -> pb.PublishWeightsResponse:
    """The whole model's digest and size, and the slowest sender's phases."""
    sent = [report for part in parts if (report := pb.PublishWeightsResponse.FromString(part)).weights_digest]
    digest = WeightsDigest()
    for report in sent:
        digest.merge(report.weights_digest)
    slowest = {
        name: max(getattr(report.phases, name) for report in sent) for name in ("gather_s", "wire_s", "load_s", "digest_s")
    }
    return pb.PublishWeightsResponse(
        weights_digest=digest.hexdigest(),
        bytes=sum(report.bytes for report in sent),
        phases=weights_pb2.PhaseSeconds(**slowest),
    )


def combine_logprobs(parts: Sequence[bytes], lengths: np.ndarray) -> samples_pb2.Ragged:
    """The first non-empty part: ranks of the last stage hold the same numbers."""
    return samples_pb2.Ragged(values=next(part for part in parts if part), lengths=lengths.astype("<u4").tobytes())
