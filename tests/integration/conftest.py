"""Replicas that several files of tests share, for a start takes long; updates of their weights only raise the version."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rollout_side import vllm_service

from models import make_model
from processes import ServiceProcess


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of `small_replica`."""
    return make_model(tmp_path_factory.mktemp("small") / "model", layers=2)


@pytest.fixture(scope="session")
def small_replica(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Of a context of 64 tokens; it keeps the weights of its start."""
    service = vllm_service(
        tmp_path_factory.mktemp("rollout"), small_model, seq_length=64, eval_temperature=0.0, eval_top_k=2,
        max_outstanding_responses=2000,
    )  # fmt: skip
    try:
        yield service.start(timeout_s=240)
    finally:
        service.kill()


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of `long_replica`."""
    return make_model(tmp_path_factory.mktemp("long") / "model", layers=2, positions=16384)


@pytest.fixture(scope="session")
def long_replica(long_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Of a context for responses that take minutes; it takes whole weights, whose versions only grow."""
    service = vllm_service(tmp_path_factory.mktemp("rollout"), long_model, seq_length=16384, ignore_eos=True)
    try:
        yield service.start(timeout_s=240)
    finally:
        service.kill()
