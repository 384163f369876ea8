"""Client of the trainer service."""

from collections.abc import Mapping, Sequence

from baton.api.common.v1 import weights_pb2
from baton.api.trainer.v1 import trainer_pb2 as pb
from baton.api.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from baton.channel import ServiceClient
from baton.errors import WrongModelError


class TrainerClient(ServiceClient):
    """Steps, publishes, saves and exports a trainer group's models. Errors: see `baton.errors`."""

    SERVICE = "baton.api.trainer.v1.TrainerService"
    STUB = TrainerServiceStub
    RETRIED = ("GetStatus", "TrainStep", "AwaitCheckpoint", "LoadCheckpoint", "ExportModel")

    async def train_step(
        self, run_id: str, episode_id: int, *, pass_index: int, step_index: int, buffer_address: str,
        expected_digests: Mapping[int, str] | None = None, timeout_s: float = 1800.0,
    ) -> pb.TrainStepResponse:  # fmt: skip
        """Takes one optimizer step on one leased global batch. Its samples are of weights with one of the
        `expected_digests`, which are by policy version, or the step is refused; None: of any."""
        request = pb.TrainStepRequest(
            run_id=run_id, episode_id=episode_id, pass_index=pass_index, step_index=step_index,
            buffer_address=buffer_address, expected_digests=dict(expected_digests or {}),
            any_weights=expected_digests is None,
        )  # fmt: skip
        return await self._call("TrainStep", request, timeout_s)

    async def open_weight_group(
        self, receivers: int, replicas: Sequence[pb.WeightReceiver] = (), *, timeout_s: float | None = None
    ) -> weights_pb2.WeightGroup:  # fmt: skip
        """Starts rendezvous for `receivers` receiving ranks, those of the `replicas`, if any are named. The group says what
        will be sent: the model, an adapter, or the base that an adapter is for and that not all of these hold yet.

        Raises WrongModelError, which names them all, if some of these have another model or tokenizer than the trainer.
        """
        request = pb.OpenWeightGroupRequest(receivers=receivers, replicas=replicas)
        answer = await self._call("OpenWeightGroup", request, timeout_s)
        if answer.refused:
            raise WrongModelError("; ".join(answer.refused.values()), answer.refused)
        return answer.group

    async def publish_weights(
        self, group_id: str, policy_version: int, *, timeout_s: float, verify: bool = False
    ) -> pb.PublishWeightsResponse:  # fmt: skip
        """Broadcasts the current weights; see `baton.weights.publish`, which calls both sides."""
        request = pb.PublishWeightsRequest(
            group_id=group_id, policy_version=policy_version, timeout_s=timeout_s, verify=verify
        )
        return await self._call("PublishWeights", request, timeout_s + 5)

    async def save_checkpoint(
        self, directory: str, *, run: str = "", background: bool = False, keep: int | None = None, timeout_s: float = 1800.0
    ) -> pb.SaveCheckpointResponse:  # fmt: skip
        """Writes a checkpoint into a new folder of `directory`, and removes the oldest of the run until `keep` are left.
        `run`: JSON that its marker shall hold. With `background` it is whole only when `await_checkpoint` returns; the
        trainer can go on in the meantime."""
        request = pb.SaveCheckpointRequest(directory=directory, run=run, background=background, keep=keep or 0)
        return await self._call("SaveCheckpoint", request, timeout_s)

    async def await_checkpoint(self, path: str, *, timeout_s: float = 1800.0) -> int:
        """Returns the size in bytes of a checkpoint that was saved in the background, once it is whole. Raises what its save
        failed with, NotFoundError if this trainer began none."""
        return (await self._call("AwaitCheckpoint", pb.AwaitCheckpointRequest(path=path), timeout_s)).bytes

    async def load_checkpoint(self, path: str, *, timeout_s: float = 1800.0) -> int:
        """Restores a checkpoint. Returns its global step."""
        return (await self._call("LoadCheckpoint", pb.LoadCheckpointRequest(path=path), timeout_s)).global_step

    async def export_model(self, directory: str, *, timeout_s: float = 1800.0) -> int:
        """Writes Hugging Face directories; a value model's is `<directory>-value`. Returns the weights' size in bytes."""
        return (await self._call("ExportModel", pb.ExportModelRequest(directory=directory), timeout_s)).bytes

    async def get_status(self) -> pb.GetStatusResponse:
        """What the trainer holds."""
        return await self._call("GetStatus", pb.GetStatusRequest())
