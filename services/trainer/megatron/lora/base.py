"""Which model's weights adapters belong to: a fingerprint of a Hugging Face directory."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open

_NUMBERS = 4096
"""Of each tensor's first row. Weights that were trained differ in them."""


def base_fingerprint(directory: Path) -> str:
    """Depends on every tensor's name, shape and first numbers, as bfloat16, so that a copy in another number format is the
    same base. Reads little, however large the model is."""
    found: dict[str, tuple[list[int], bytes]] = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                part = file.get_slice(name)
                shape = part.get_shape()
                first = (part[:1] if len(shape) > 1 else part[:_NUMBERS]).flatten()[:_NUMBERS].to(torch.bfloat16)
                found[name] = (shape, first.view(torch.int16).numpy().tobytes())
    digest = hashlib.sha256()
    for name, (shape, numbers) in sorted(found.items()):
        digest.update(json.dumps([name, shape]).encode() + numbers)
    return digest.hexdigest()[:32]
