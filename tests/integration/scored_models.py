"""Small models of every supported kind, and the samples that transformers and the trainer both score."""

from typing import Any

import numpy as np

from baton.samples import Ragged, Samples

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-untied": ("llama", {"vocab_size": 101}),
    "llama-scaled-rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "vocab_size": 101}),
    "qwen2-untied": ("qwen2", {"num_key_value_heads": 2}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3-untied": ("qwen3", {"head_dim": 24, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
}
"""Name -> (family, what differs from `SIZES`). 101 does not divide by two: at TP 2 the vocabulary is padded."""
SIZES: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 12, "vocab_size": 100, "max_position_embeddings": 128, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def samples() -> Samples:
    """Ten samples: shared prompts, a response of one token, one of none, long ones, three temperatures."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 100, length) for length in (40, 5, 1, 17)]
    lengths = [20, 1, 7, 0, 12, 3, 3, 9, 30, 2]
    temperatures = [1.0, 0.7, 0.0, 1.0, 1.3, 1.0, 1.0, 0.7, 1.0, 1.0]
    return Samples(
        sample_ids=[f"s{i}" for i in range(10)],
        prompt_ids=Ragged.of([prompts[i // 3] for i in range(10)], np.int32),
        response_ids=Ragged.of([rng.integers(3, 100, length) for length in lengths], np.int32),
        temperatures=np.array(temperatures, np.float32),
    )


CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {"vocab_size": 101}),
    "qwen3": ("qwen3", {"head_dim": 24}),
}
"""Sequence classifiers with one label, likewise."""
