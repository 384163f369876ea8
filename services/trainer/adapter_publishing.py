"""What a weight group is opened for: the whole model, or of a run that sends adapters, the base once, and then adapters."""

from baton.api.common.v1 import weights_pb2
from baton.api.trainer.v1 import trainer_pb2 as pb
from baton.config.lora import LoraConfig
from services.common.weight_sync.digest import joined

_MODEL, _BASE, _ADAPTER = (
    weights_pb2.WEIGHT_CONTENT_MODEL, weights_pb2.WEIGHT_CONTENT_BASE, weights_pb2.WEIGHT_CONTENT_ADAPTER,
)  # fmt: skip


class Contents:
    """Rank 0's. A base stays the same as long as this process lives, also when a checkpoint is loaded, as one of adapters
    has nothing of it; a new process sends its own again, once: so what replicas hold has been compared with what is trained
    on."""

    def __init__(self, lora: LoraConfig) -> None:
        self._lora = lora
        self._open = _MODEL
        self._base_digest = ""

    def chosen(self, request: pb.OpenWeightGroupRequest) -> weights_pb2.WeightContent:
        """What the group is for: what was asked for, or what its replicas need next."""
        if request.content:
            return request.content
        if not self._lora.sends_adapter:
            return _MODEL
        held = {replica.base_digest for replica in request.replicas}
        return _ADAPTER if self._base_digest and held == {self._base_digest} else _BASE

    def describe(self, group: weights_pb2.WeightGroup) -> None:
        """Writes into an opened group what its receivers need to know of its content."""
        self._open = group.content
        if group.content in (_BASE, _ADAPTER):
            group.base_digest = self._base_digest
        if group.content == _ADAPTER:
            group.adapter_multiplier = self._lora.multiplier

    def sent(self, answer: pb.PublishWeightsResponse) -> pb.PublishWeightsResponse:
        """The answer to a publication in the open group; the digest of an adapter is with its base's."""
        if self._open == _BASE:
            self._base_digest = answer.weights_digest
        elif self._open == _ADAPTER:
            answer.weights_digest = joined(self._base_digest, answer.weights_digest)
        return answer
