"""sdk/baton/api is what protos/ generates: nobody edits it, and nobody forgets to generate it."""

import subprocess
import sys
from pathlib import Path

import pytest

from baton.api.buffer.v1 import buffer_pb2
from baton.api.coordinator.v1 import coordinator_pb2
from baton.api.rollout.v1 import rollout_pb2
from baton.api.trainer.v1 import trainer_pb2

ROOT = Path(__file__).resolve().parents[2]
PROTO_LINES = 250
PROTOS = sorted(path.relative_to(ROOT) for path in (ROOT / "protos").rglob("*.proto"))


def test_the_committed_code_is_what_the_protos_generate() -> None:
    answer = subprocess.run(
        [sys.executable, "scripts/gen_protos.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("path", PROTOS, ids=str)
def test_a_proto_file_is_shorter_than_250_lines(path: Path) -> None:
    assert len((ROOT / path).read_text().splitlines()) < PROTO_LINES


@pytest.mark.parametrize(
    "file", [buffer_pb2, coordinator_pb2, rollout_pb2, trainer_pb2], ids=lambda file: file.DESCRIPTOR.package
)
def test_every_rpc_has_a_request_and_a_response_of_its_own(file: object) -> None:
    (service,) = file.DESCRIPTOR.services_by_name.values()
    for method in service.methods:
        assert (method.input_type.name, method.output_type.name) == (f"{method.name}Request", f"{method.name}Response")
