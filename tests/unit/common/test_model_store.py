"""What is had from a model hub."""

from pathlib import Path

import huggingface_hub
import pytest

from services.common.model_store import resolve_model


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
