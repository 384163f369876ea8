"""The tokens that end a response."""

import json
from pathlib import Path
from typing import Any


def end_tokens(directory: Path, tokenizer: Any) -> frozenset[int]:
    """The tokenizer's end token, and those that the model's generation_config.json, or else its config.json, names."""
    named = next(
        (path for path in (directory / "generation_config.json", directory / "config.json") if path.is_file()), None
    )
    ids = json.loads(named.read_text()).get("eos_token_id") if named else None
    listed = ids if isinstance(ids, list) else [ids]
    return frozenset(token for token in [tokenizer.eos_token_id, *listed] if token is not None)
