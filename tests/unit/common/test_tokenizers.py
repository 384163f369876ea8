"""A tokenizer's own Python code runs if the run file trusts it, and never else; one is never made up."""

import json
import sys
from pathlib import Path

import huggingface_hub
import pytest

from baton.errors import ConfigError
from models import make_model, make_tokenizer
from services.common.tokenizers import find_tokenizer, load_tokenizer

CODE = """
from transformers import PreTrainedTokenizerFast

class ShoutingTokenizer(PreTrainedTokenizerFast):
    def decode(self, *arguments, **options):
        return super().decode(*arguments, **options).upper()
"""


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model directory with a tokenizer of its own; what is imported from it stays within the test."""
    directory = make_model(tmp_path / "model", layers=2)
    (directory / "shouting.py").write_text(CODE)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "ShoutingTokenizer", "auto_map": {"AutoTokenizer": [None, "shouting.ShoutingTokenizer"]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return directory


def test_a_trusted_tokenizer_is_the_one_that_its_code_makes(with_code: Path) -> None:
    assert load_tokenizer(with_code, trust_remote_code=True).decode([4, 5]) == "W1 W2"


def test_a_tokenizer_that_is_nothing_without_its_code_is_refused_by_the_options_name(with_code: Path) -> None:
    (with_code / "config.json").unlink()  # so that no model type says which class would do instead
    with pytest.raises(ConfigError, match=r"(?s)could not be loaded.*set models.policy.trust_remote_code"):
        load_tokenizer(with_code)


def test_the_code_of_a_tokenizer_that_is_not_trusted_does_not_run(with_code: Path) -> None:
    assert load_tokenizer(with_code).decode([4, 5]) == "w1 w2"


def test_a_tokenizer_without_code_needs_no_trust(tmp_path: Path) -> None:
    assert load_tokenizer(make_model(tmp_path / "model", layers=2)).decode([4, 5]) == "w1 w2"


def test_a_revision_of_a_directory_is_refused(tmp_path: Path) -> None:
    told = r"models\.policy\.tokenizer_revision: got 'v1'; .* is not had from a model hub; leave it out, or name a tokenizer"
    with pytest.raises(ConfigError, match=told):
        load_tokenizer(make_model(tmp_path / "model", layers=1), revision="v1")


def test_for_a_directory_without_a_tokenizer_none_is_made_up(tmp_path: Path) -> None:
    directory = make_model(tmp_path / "model", layers=2)
    for file in directory.glob("tokenizer*"):
        file.unlink()
    assert find_tokenizer(directory) is None
    with pytest.raises(ConfigError, match=r"models\.policy\.tokenizer: '.*model' has no tokenizer; write a directory"):
        load_tokenizer(directory)


@pytest.mark.parametrize(("revision", "text"), [(None, "w0 w1"), ("older", "w1 w0")])
def test_a_tokenizer_of_the_hub_is_the_one_of_its_revision(
    revision: str | None, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--somebody--tokenizer"
    (repository / "refs").mkdir(parents=True)
    for name, commit, words in (("main", "1" * 40, ["w0", "w1"]), ("older", "2" * 40, ["w1", "w0"])):
        (repository / "refs" / name).write_text(commit)
        make_tokenizer(make_model(repository / "snapshots" / commit, layers=1), words)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_tokenizer("somebody/tokenizer", revision=revision).decode([3, 4]) == text
    assert find_tokenizer("somebody/tokenizer", revision).decode([3, 4]) == text
