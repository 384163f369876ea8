"""The tokenizer of a model directory, and the tokens that end a response."""

import json
from pathlib import Path
from typing import Any

from services.common.model_store import no_tokenizer


def load_tokenizer(name: str | Path, *, trust_remote_code: bool) -> Any:
    """A directory's or a hub id's; its own Python code runs if that is trusted. To be called before Megatron is redirected
    to the CPU. Raises ConfigError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise no_tokenizer(str(name), error) from error


def end_tokens(directory: Path, tokenizer: Any) -> frozenset[int]:
    """The tokenizer's end token, and those that the model's generation_config.json, or else its config.json, names."""
    named = next(
        (path for path in (directory / "generation_config.json", directory / "config.json") if path.is_file()), None
    )
    ids = json.loads(named.read_text()).get("eos_token_id") if named else None
    listed = ids if isinstance(ids, list) else [ids]
    return frozenset(token for token in [tokenizer.eos_token_id, *listed] if token is not None)
