"""`models.policy.revision` is the one that every service has from the model hub, here out of a cache of two revisions."""

from collections.abc import Callable
from pathlib import Path

import pytest

from processes import ServiceProcess, StaticProcess, TrainerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

REVISIONS = {"main": "1" * 40, "older": "2" * 40}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two revisions of somebody/model, which no service can take and all name in their error."""
    repository = tmp_path / "hub" / "models--somebody--model"
    (repository / "refs").mkdir(parents=True)
    for name, commit in REVISIONS.items():
        (repository / "refs" / name).write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text('{"model_type": "opt"}')
    monkeypatch.setenv("HF_HUB_CACHE", str(repository.parent))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("generator", "service"),
    [
        ("vllm", lambda run, directory: ServiceProcess("rollout", run, directory)),
        ("megatron", lambda run, directory: StaticProcess(run, directory, 1)),
        ("vllm", lambda run, directory: TrainerProcess(run, directory, 1)),
    ],
    ids=["rollout", "static rollout", "trainer"],
)
def test_a_service_takes_the_revision_of_the_run_file(
    generator: str, service: Callable[[Path, Path], ServiceProcess], tmp_path: Path
) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(f"models: {{policy: {{model: somebody/model, revision: older, generator: {generator}}}}}\n")
    process = service(run, tmp_path)
    try:
        with pytest.raises(AssertionError, match=rf"snapshots/{REVISIONS['older']}"):
            process.start(240)
    finally:
        process.kill()
