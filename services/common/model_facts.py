"""What a model and its tokenizer must have in common with those whose weights they are to take."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

_FIELDS = (
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "tie_word_embeddings", "attention_bias", "hidden_act", "rms_norm_eps",
)  # fmt: skip
"""Fields of config.json that are compared as they are. How long a context may be changes no weight, so it is not here."""


def directory_facts(directory: Path, tokenizer: Any | None) -> dict[str, str]:
    """Those of a Hugging Face directory. Raises OSError or ValueError if transformers cannot read its config.json."""
    from transformers import AutoConfig

    return model_facts(AutoConfig.from_pretrained(directory), tokenizer)


def model_facts(config: Any, tokenizer: Any | None) -> dict[str, str]:
    """By name, those that this config of transformers knows, as text; `tokenizer` only if there is one."""
    facts = {name: _text(value) for name in _FIELDS if (value := getattr(config, name, None)) is not None}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    theta = rope.get("rope_theta") or getattr(config, "rope_theta", 10000.0)
    scaling = {name: _text(value) for name, value in sorted(rope.items()) if name not in ("rope_theta", "rope_type", "type")}
    facts |= {"head_dim": _text(head_dim), "rope_theta": _text(float(theta)), "rope_scaling": json.dumps(scaling)}
    facts["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    return facts if tokenizer is None else facts | _vocabulary(tokenizer)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)  # 9.99999975e-06, a float32 once, is 1e-05


def _vocabulary(tokenizer: Any) -> dict[str, str]:
    ids = tokenizer.get_vocab()
    listing = json.dumps(sorted(ids.items(), key=lambda item: (item[1], item[0])))
    return {"tokenizer": f"{len(ids)} tokens of digest {blake2b(listing.encode(), digest_size=8).hexdigest()}"}
