"""What a trainer sends next: the whole model, the base below its adapters, or an adapter."""

import pytest

from baton.api.common.v1 import weights_pb2
from baton.api.trainer.v1 import trainer_pb2 as pb
from baton.config.lora import LoraConfig
from services.common.weight_sync.digest import joined
from services.trainer.adapter_publishing import Contents

MODEL, BASE, ADAPTER = (
    weights_pb2.WEIGHT_CONTENT_MODEL, weights_pb2.WEIGHT_CONTENT_BASE, weights_pb2.WEIGHT_CONTENT_ADAPTER,
)  # fmt: skip
OWN, OTHER = "0a" * 16, "0b" * 16


def asking(*held: str) -> pb.OpenWeightGroupRequest:
    """Replicas that hold bases of these digests."""
    return pb.OpenWeightGroupRequest(replicas=[pb.WeightReceiver(base_digest=digest) for digest in held])


def published(contents: Contents, content: int, digest: str) -> str:
    """The digest that is told of a publication."""
    contents.describe(weights_pb2.WeightGroup(content=content))
    return contents.sent(pb.PublishWeightsResponse(weights_digest=digest)).weights_digest


@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(enable_lora=True, sync="merged")])
def test_without_adapters_to_send_it_is_the_model(lora: LoraConfig) -> None:
    assert Contents(lora).chosen(asking(OWN)) == MODEL


def test_an_adapter_is_sent_only_to_those_that_hold_the_base_that_this_process_has_sent() -> None:
    contents = Contents(LoraConfig(enable_lora=True))
    assert contents.chosen(asking(OWN)) == BASE, "of another process: nobody has compared it"
    assert published(contents, BASE, OWN) == OWN
    assert contents.chosen(asking(OWN, OWN)) == ADAPTER
    assert contents.chosen(asking(OWN, "")) == BASE
    assert contents.chosen(asking(OWN, OTHER)) == BASE


def test_an_adapters_group_says_what_it_is_for_and_its_digest_is_of_both() -> None:
    contents = Contents(LoraConfig(enable_lora=True, lora_dim=4, lora_scaling=2.0))
    published(contents, BASE, OWN)
    group = weights_pb2.WeightGroup(content=ADAPTER)
    contents.describe(group)
    assert (group.base_digest, group.adapter_multiplier) == (OWN, 0.5)
    assert published(contents, ADAPTER, OTHER) == joined(OWN, OTHER)
    assert published(contents, MODEL, OTHER) == OTHER
