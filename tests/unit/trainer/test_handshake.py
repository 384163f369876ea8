"""A replica of another model or tokenizer than the trainer's is refused, by name, with what differs on both sides."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from baton.api.trainer.v1 import trainer_pb2 as pb
from baton.errors import InvalidRequestError
from models import make_model, make_tokenizer
from services.trainer.handshake import own_facts, refused

LINEAR = {"rope_type": "linear", "rope_theta": 1e4}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("own") / "model", layers=1)


def facts_of(directory: Path) -> dict[str, str]:
    return own_facts(directory, directory)


def altered(source: Path, target: Path, **fields: Any) -> Path:
    """The config alone, with some fields changed; None leaves one out."""
    target.mkdir()
    config = json.loads((source / "config.json").read_text()) | {"layer_types": None} | fields
    (target / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return target


def request(*facts: dict[str, str], devices: int = 1) -> pb.OpenWeightGroupRequest:
    replicas = [
        pb.WeightReceiver(address=f"host:{7000 + number}", devices=["cpu"] * devices, model_facts=one)
        for number, one in enumerate(facts)
    ]
    return pb.OpenWeightGroupRequest(receivers=len(facts), replicas=replicas)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("num_hidden_layers", 2, "num_hidden_layers is 2 there and 1 here"),
        ("hidden_size", 128, "hidden_size is 128 there and 64 here"),
        ("intermediate_size", 192, "intermediate_size is 192 there and 128 here"),
        ("num_attention_heads", 8, "num_attention_heads is 8 there and 4 here"),
        ("num_key_value_heads", 4, "num_key_value_heads is 4 there and 2 here"),
        ("head_dim", 16, "head_dim is 16 there and 32 here"),
        ("vocab_size", 520, "vocab_size is 520 there and 512 here"),
        ("tie_word_embeddings", False, "tie_word_embeddings is False there and True here"),
        ("rms_norm_eps", 1e-5, "rms_norm_eps is 1e-05 there and 1e-06 here"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e6}, r"rope_theta is 1e\+06 there and 10000 here"),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0}, "rope_type is linear there and default here"),
        ("model_type", "llama", "model_type is llama there and qwen3 here"),
    ],
)
def test_a_field_that_differs_is_named_with_both_values(
    own: Path, tmp_path: Path, field: str, value: Any, told: str
) -> None:  # fmt: skip
    theirs = facts_of(altered(own, tmp_path / "other", **{field: value}))
    answer = refused(facts_of(own), request(facts_of(own), theirs))
    assert list(answer) == ["host:7001"]
    assert re.search(f"rollout host:7001 has another model than the trainer.*{told}", answer["host:7001"])


def test_another_vocabulary_is_told_by_its_size_and_digest(own: Path, tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(509)]
    words[3], words[4] = words[4], words[3]
    altered(own, tmp_path / "other")
    theirs = facts_of(make_tokenizer(tmp_path / "other", words))
    told = r"tokenizer is 512 tokens of digest \w{16} there and 512 tokens of digest \w{16} here"
    assert re.search(told, refused(facts_of(own), request(theirs))["host:7000"])


def test_what_changes_no_weight_or_is_known_on_one_side_only_is_taken(own: Path, tmp_path: Path) -> None:
    longer = altered(own, tmp_path / "longer", max_position_embeddings=1024)
    rounded = altered(own, tmp_path / "rounded", rms_norm_eps=9.999999974752427e-07, rope_parameters=None)
    scaled = [altered(own, tmp_path / f"by-{factor}", rope_parameters=LINEAR | {"factor": factor}) for factor in (8, 8.0)]
    without_tokenizer = facts_of(longer)
    assert "tokenizer" not in without_tokenizer
    assert refused(facts_of(own), request(without_tokenizer, facts_of(rounded), {})) == {}
    assert refused(without_tokenizer, request(facts_of(own))) == {}
    assert refused(facts_of(scaled[0]), request(facts_of(scaled[1]))) == {}
    assert refused(facts_of(own), pb.OpenWeightGroupRequest(receivers=3)) == {}


def test_every_receiver_has_a_device(own: Path) -> None:
    with pytest.raises(InvalidRequestError, match="1 receivers, but their replicas have 2 devices"):
        refused(facts_of(own), request(facts_of(own), devices=2))
