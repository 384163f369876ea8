"""Models and adapters on which the trainer's LoRA and PEFT's are compared, and the training that both do."""

from typing import Any

from scored_models import MODELS

STEPS = 3
ADAM: dict[str, float] = {"lr": 1e-2, "eps": 1e-5, "weight_decay": 0.01}
IN_LAYER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[str, dict[str, Any], list[str], dict[str, Any]]] = {
    "tied, all kinds": ("qwen2-tied", {"r": 4, "lora_alpha": 8}, [*IN_LAYER, "embed_tokens"], {}),
    "untied, all kinds": ("qwen3-untied", {"r": 3, "lora_alpha": 4.5}, [*IN_LAYER, "embed_tokens", "lm_head"], {}),
    "queries and values": ("llama-tied", {"r": 2, "lora_alpha": 2}, ["q_proj", "v_proj"], {"column_only_qkv": True}),
}
"""Name -> (model, PEFT's rank and alpha, its target modules, the trainer's options). In the last one PEFT's adapter has no
keys; the trainer's has, which begins at zero and is trained, too."""
COMPARED = [name for name in CASES if name != "queries and values"]
"""Cases in which both train the same."""
assert all(model in MODELS for model, *_ in CASES.values())
