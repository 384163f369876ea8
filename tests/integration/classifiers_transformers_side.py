"""`classifiers_transformers_side.py DIRECTORY`: makes sequence classifiers with one label there, and evaluates them.

A process of its own: the trainer redirects torch's CUDA functions, which transformers does not survive.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from scored_models import CLASSIFIERS, SIZES, samples
from transformers import AutoConfig, AutoModelForSequenceClassification


def make(directory: Path, family: str, changes: dict) -> torch.nn.Module:
    """A random classifier, saved to `directory`."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES | changes, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return model


def evaluate(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The head's output before each response token, and at each sample's last token; the norm of both means' gradients."""
    batch, values, scores = samples(), [], []
    for prompt, response in zip(batch.prompt_ids.rows(), batch.response_ids.rows(), strict=True):
        ids = torch.tensor(np.concatenate([prompt, response])[None].astype(np.int64))
        outputs = model.score(model.model(ids).last_hidden_state)[0, :, 0]
        values.append(outputs[len(prompt) - 1 : -1])
        scores.append(model(ids).logits[0])
    columns = {"values": torch.cat(values), "scores": torch.cat(scores)}
    norms = {}
    for name, column in columns.items():
        model.zero_grad()
        column.mean().backward(retain_graph=True)
        norms[f"{name}_norm"] = torch.nn.utils.get_total_norm(
            [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        ).numpy()
    return {name: column.detach().numpy() for name, column in columns.items()} | norms


def main(directory: Path) -> None:
    for name, (family, changes) in CLASSIFIERS.items():
        np.savez(directory / f"{name}-transformers.npz", **evaluate(make(directory / name, family, changes)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
