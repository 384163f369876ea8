"""What every rank of the trainer does for each command: one method per RPC, from its request to this rank's answer.

The commands run on all ranks at once; `combine_*` makes rank 0's answer out of all ranks' parts.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from baton.api.common.v1 import weights_pb2
from baton.api.trainer.v1 import trainer_pb2 as pb
from baton.clients.buffer import MicroBatch
from baton.config import RunConfig
from baton.errors import InvalidRequestError, NotReadyError
from services.common.weight_sync.digest import joined
from services.trainer.checks import check_digests, check_fits
from services.trainer.exporting import export
from services.trainer.leasing import Lease, Leasing
from services.trainer.megatron import checkpoint
from services.trainer.megatron.checkpoint_saver import CheckpointSaver
from services.trainer.megatron.parallel import seed_step
from services.trainer.models import Models
from services.trainer.objectives import objective_for
from services.trainer.ranks import Handler
from services.trainer.sender import WeightSender
from services.trainer.step import train_step

_KNOWN = ("grad_norm", "lr", "skipped")
"""Metrics of an update, which all ranks know."""
StepKey = tuple[str, int, int, int]
"""(run, episode, pass, step)"""


def _key(request: pb.TrainStepRequest) -> StepKey:
    return request.run_id, request.episode_id, request.pass_index, request.step_index


@dataclass(frozen=True, slots=True)
class _Leased:
    """This rank's share of a step that may be taken."""

    key: StepKey
    lease: Lease
    batches: list[MicroBatch]
    seconds: float


@dataclass(slots=True)
class _Taken:
    """The last step, kept so that a repeated request gets the same answer."""

    key: StepKey
    lease: Lease
    response: pb.TrainStepResponse
    acknowledged: bool = False


class Trainer:
    """One rank's state: the models, the sender, and which step is leased or was taken last."""

    def __init__(self, run: RunConfig, models: Models) -> None:
        self._run = run
        self.models = models
        self.objective = objective_for(run.algorithm)
        self.global_step = 0
        self.saver = CheckpointSaver(run.deadlines.checkpoint_s)
        self._leased: _Leased | None = None
        self._taken: _Taken | None = None
        self._leasing = Leasing(run, models)
        policy_dtype = getattr(torch, run.models.policy.dtype)
        bucket_bytes = run.runtime.coalesced_buffer_mb << 20
        self._sender: WeightSender | None = None
        if "ppo_policy" in models.trained:
            self._sender = WeightSender(models.trained["ppo_policy"], run.services.host, policy_dtype, bucket_bytes)

    def handlers(self) -> dict[str, Handler]:
        """The commands, for `Ranks`."""
        return {
            "LeaseStep": lambda raw: self.lease_step(pb.TrainStepRequest.FromString(raw)),
            "TrainStep": lambda raw: self.train_step(pb.TrainStepRequest.FromString(raw)).SerializeToString(),
            "OpenWeightGroup": lambda raw: self.open_group(pb.OpenWeightGroupRequest.FromString(raw)).SerializeToString(),
            "AdoptWeightGroup": lambda raw: self._policy_sender().adopt(raw.decode()) or b"",
            "PublishWeights": lambda raw: self.publish(pb.PublishWeightsRequest.FromString(raw)),
            "SaveCheckpoint": lambda raw: self.save(pb.SaveCheckpointRequest.FromString(raw)).encode(),
            "LoadCheckpoint": lambda raw: self.load(Path(raw.decode())),
            "ExportModel": lambda raw: self.export(Path(raw.decode())),
        }

    def lease_step(self, request: pb.TrainStepRequest) -> bytes:
        """Leases and checks this rank's micro-batches. A command of its own, so that one rank's refusal stops them all
        before any of them computes and waits for the others."""
        key = _key(request)
        if self._taken is None or self._taken.key != key:
            self._require_trained_together()
            started = time.perf_counter()
            batches = self._leasing.lease(request)
            lease = Lease(batches[0].lease_id)
            try:
                for batch in batches:
                    self.objective.check(batch.samples)
                    for engine in self.models.trained.values():
                        check_fits(batch.samples, engine.shape)
                    if not request.any_weights:
                        check_digests(batch.samples, request.expected_digests)
            except Exception as error:
                self._leasing.release(request, lease, error)
                raise
            self._leased = _Leased(key, lease, batches, time.perf_counter() - started)
        return b""

    def _require_trained_together(self) -> None:
        """Raises InvalidRequestError if the algorithm trains other models than this group."""
        self.models.engine("ppo_policy")
        name, has_critic = self._run.algorithm.name, "ppo_value" in self.models.trained
        if has_critic != (name == "ppo"):
            raise InvalidRequestError(
                f"algorithm {name} trains no critic, but the run file has models.ppo_value; leave that out, or write ppo"
                if has_critic else "algorithm ppo trains a critic, which the run file lacks; add models.ppo_value"
            )  # fmt: skip

    def train_step(self, request: pb.TrainStepRequest) -> pb.TrainStepResponse:
        """Takes the leased step, unless it was taken before; (rank 0) acknowledges the lease, until that has succeeded."""
        key = _key(request)
        if self._taken is None or self._taken.key != key:
            leased, self._leased = self._leased, None
            if leased is None or leased.key != key:
                raise NotReadyError(f"step {key} is not leased here; lease it first")
            try:
                self._taken = self._take(leased)
            except Exception as error:  # whatever it is: who tries again need not wait for the lease's end
                self._leasing.release(request, leased.lease, error)
                raise
        if self.models.layout.world_rank == 0 and not self._taken.acknowledged:
            self._leasing.acknowledge(request, self._taken.lease, self.global_step)
            self._taken.acknowledged = True
        return self._taken.response

    def _take(self, leased: _Leased) -> _Taken:
        started = time.perf_counter()
        seed_step(self._run.runtime.seed, self.global_step)
        report = train_step(self.objective, self.models.trained, leased.batches, tail=self._run.runtime.tail)
        self.global_step += 1
        metrics = report.sums | {
            "seconds/lease": leased.seconds, "seconds/compute": time.perf_counter() - started,
        }  # fmt: skip
        for role, update in report.updates.items():
            prefix = "" if role == "ppo_policy" else "value_"
            known = update.grad_norm, update.learning_rate, float(update.skipped)
            metrics |= {prefix + name: value for name, value in zip(_KNOWN, known, strict=True)}
        counted = report.counted
        response = pb.TrainStepResponse(
            global_step=self.global_step, metrics=metrics, samples=counted.samples,
            response_tokens=counted.response_tokens, computed_tokens=counted.computed_tokens,
        )  # fmt: skip
        return _Taken(leased.key, leased.lease, response)

    def _policy_sender(self) -> WeightSender:
        self.models.engine("ppo_policy")
        return self._sender

    def open_group(self, request: pb.OpenWeightGroupRequest) -> weights_pb2.WeightGroup:
        """Starts this rank's rendezvous, if it is a sender."""
        devices = [device for replica in request.replicas for device in replica.devices]
        return self._policy_sender().open(devices or [""] * request.receivers, request.content)

    def give_up_publishing(self) -> None:
        """From any thread: nobody waits any more for the publication that may be waiting for its receivers."""
        if self._sender:
            self._sender.give_up()

    def publish(self, request: pb.PublishWeightsRequest) -> bytes:
        """Sends this rank's weights, if it is a sender; returns its `Transfer.report`."""
        transfer = self._policy_sender().publish(request.group_id, request.timeout_s, verify=request.verify)
        return json.dumps(transfer.report()).encode() if transfer else b""

    def save(self, request: pb.SaveCheckpointRequest) -> str:
        """Begins to write a checkpoint of what is trained, and what the request says of the run; returns its path after the
        copy. `saver` waits for the rest."""
        self.models.engine("ppo_policy")
        facts = {
            "global_step": self.global_step, "objective": self.objective.state(),
            "skipped_steps": {role: engine.skipped_steps for role, engine in self.models.trained.items()},
        }  # fmt: skip
        if request.run:
            facts["run"] = json.loads(request.run)
        directory, keep = Path(request.directory), request.keep or None
        return str(checkpoint.start_save(self.saver, self.models.trained, directory, facts, keep))

    def load(self, path: Path) -> bytes:
        """Restores a checkpoint, after one that is being written is whole: it must not appear later, as if it were newer."""
        self.models.engine("ppo_policy")
        self.saver.join()
        trained = self.models.trained
        adaptive = all(self.models.group.roles[role].adaptive_parallel_strategy_on_checkpoint for role in trained)
        facts = checkpoint.load(trained, path, adaptive=adaptive)
        self.global_step = int(facts["global_step"])
        self.objective.restore(facts["objective"])
        for role, engine in trained.items():
            engine.clear()  # gradients of other weights
            engine.skipped_steps = int(facts.get("skipped_steps", {}).get(role, 0))
        self._taken = self._leased = None
        return b""

    def export(self, directory: Path) -> bytes:
        """Writes one Hugging Face directory for each trained model. Returns this rank's bytes as decimal text."""
        self.models.engine("ppo_policy")
        written = 0
        for role, engine in self.models.trained.items():
            target = directory if role == "ppo_policy" else directory.with_name(f"{directory.name}-value")
            written += export(engine, target)
        return str(written).encode()


def combine_steps(parts: Sequence[bytes]) -> pb.TrainStepResponse:
    """Adds up what the ranks counted; what all of them know is taken from rank 0."""
    reports = [pb.TrainStepResponse.FromString(part) for part in parts]
    known = (*_KNOWN, *(f"value_{name}" for name in _KNOWN))
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
    reports = [json.loads(part) for part in parts if part]
    slowest = {f"{name}_s": max(report["seconds"][name] for report in reports) for name in reports[0]["seconds"]}
    return pb.PublishWeightsResponse(
        weights_digest=joined(*(report["digest"] for report in reports)),
        bytes=sum(report["bytes"] for report in reports),
        phases=weights_pb2.PhaseSeconds(**slowest),
    )
