"""What is had from a model hub."""

from pathlib import Path

import huggingface_hub
import pytest

from baton.errors import ConfigError
from services.common.model_store import BUILT_IN, resolve_model


@pytest.mark.parametrize("trusted", [False, True])
def test_a_models_own_code_is_had_only_if_it_is_trusted(trusted: bool, monkeypatch, tmp_path: Path) -> None:
    asked: dict[str, object] = {}

    def download(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("somebody/model", trust_remote_code=trusted) == tmp_path
    assert asked["name"] == "somebody/model"
    assert ("*.py" in asked["allow_patterns"]) is trusted


@pytest.mark.parametrize(("revision", "commit"), [(None, "1" * 40), ("older", "2" * 40), ("2" * 40, "2" * 40)])
def test_a_revision_is_the_one_that_is_had(revision: str | None, commit: str, monkeypatch, tmp_path: Path) -> None:
    repository = tmp_path / "models--somebody--model"
    (repository / "refs").mkdir(parents=True)
    for name, of in (("main", "1" * 40), ("older", "2" * 40)):
        (repository / "refs" / name).write_text(of)
        (repository / "snapshots" / of).mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert resolve_model("somebody/model", revision=revision) == repository / "snapshots" / commit


def test_what_is_no_model_of_a_hub_has_no_revisions(tmp_path: Path) -> None:
    for name in (str(tmp_path), BUILT_IN):
        with pytest.raises(ConfigError, match=r"models\.policy\.revision: got 'v1'; .* is not had from a model hub; leave"):
            resolve_model(name, revision="v1")
