"""The receiving end of a weight update, inside vLLM's worker processes."""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info

from baton.api.common.v1 import weights_pb2
from services.common.weight_sync.digest import WeightsDigest
from services.common.weight_sync.group import BroadcastGroup
from services.common.weight_sync.plan import Bucket, plan_buckets
from services.common.weight_sync.transfer import receive
from services.rollout import vllm_sampler


@dataclass
class GroupInfo(WeightTransferInitInfo):
    """Which group to join: a serialized WeightGroup, and this replica's first rank in it."""

    group: bytes
    first_rank: int
    timeout_s: float


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """The plan was made when the group was joined; `load` numbers the sets of weights that this engine takes."""

    load: int


class BroadcastReceiver(WeightTransferEngine[GroupInfo, UpdateInfo]):
    """Receives every sender's buckets and loads them into this worker's model."""

    init_info_cls = GroupInfo
    update_info_cls = UpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._senders: list[tuple[BroadcastGroup, list[Bucket]]] = []
        self.report: dict[str, Any] = {}

    @staticmethod
    def trainer_send_weights(*args: Any, **kwargs: Any) -> None:
        """Older vLLM asks every engine for the sending end too; ours is the trainer service."""
        raise NotImplementedError("weights are sent by the trainer service: TrainerService.PublishWeights")

    def init_transfer_engine(self, init_info: GroupInfo) -> None:
        """Joins one broadcast group per sender, while the senders do."""
        group = weights_pb2.WeightGroup.FromString(init_info.group)
        rank = init_info.first_rank + self.parallel_config.rank
        self._senders = [
            (
                BroadcastGroup.join(
                    sender.store_host, sender.store_port, rank=rank, size=group.receivers + 1, backend=group.backend,
                    group_id=group.group_id, timeout_s=init_info.timeout_s,
                ),
                plan_buckets(sender.tensors, group.bucket_bytes),
            )
            for sender in group.senders
        ]  # fmt: skip

    def start_weight_update(self) -> None:
        """Brings every layer back to the layout of a checkpoint."""
        drop_unfinished(self.model)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Receives everything once and keeps a report of it: digest, bytes, seconds per phase."""
        vllm_sampler.loaded(update_info.load)
        digest, seconds, count = WeightsDigest(), {}, 0
        senders, self._senders = self._senders, []  # a broken group is left, so that no other member waits for this one
        for group, buckets in senders:
            transfer = receive(group, buckets, self.model.load_weights, self.device)
            digest.merge(transfer.digest.hexdigest())
            seconds = {phase: seconds.get(phase, 0.0) + spent for phase, spent in transfer.seconds.items()}
            count += transfer.bytes
        self._senders = senders
        self.report = {"digest": digest.hexdigest(), "bytes": count, "seconds": seconds}

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class does, which would synchronise an accelerator that a CPU worker lacks."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def finish_weight_update(self) -> None:
        """Runs what layers do after loading, and puts their tensors back where compiled code expects them."""
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            self._repack_tied_heads()

    def _repack_tied_heads(self) -> None:
        """On CPU every layer multiplies with a packed copy of its weight, made when the weight is loaded. An output layer
        that is tied to the embedding is never loaded itself: without this its copy would stay that of the first weights."""
        embeddings = {
            module.weight.data_ptr()
            for module in self.model.modules()
            if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
        }
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead) and module.weight.data_ptr() in embeddings:
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Leaves the groups."""
        self._senders = []


def drop_unfinished(model: torch.nn.Module) -> None:
    """Forgets what an update that broke off has left, and gives every layer the tensors back that the engine runs with.

    vLLM collects the parts of a fused layer (q, k and v; gate and up), counts their elements, and fills the layer when all
    are there. A new update skips layers that still collect: old parts would count as new ones, and the layer would be filled
    before its last part has come, while the digest, which is of what was received, is right.
    """
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if not info.can_load():  # it collects nothing: filled, or no update began
            continue
        if info.kernel_tensors is not None:
            _place_kernel_tensors(layer, info)
        info.reset()
