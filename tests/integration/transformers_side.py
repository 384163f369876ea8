"""`transformers_side.py DIRECTORY`: makes every model of `scored_models` there, and scores the samples with transformers.

A process of its own: the trainer redirects torch's CUDA functions, which transformers does not survive.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from scored_models import MODELS, SIZES, samples
from transformers import AutoConfig, AutoModelForCausalLM


def make(directory: Path, family: str, changes: dict) -> torch.nn.Module:
    """A random model, saved to `directory`."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | changes), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # norms off one, biases off zero, logits off flat
    model.save_pretrained(directory)
    return model


def scores_of(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies per response token, each sample by itself."""
    batch = samples()
    logprobs, entropies = [], []
    for prompt, response, temperature in zip(
        batch.prompt_ids.rows(), batch.response_ids.rows(), batch.temperatures, strict=True
    ):
        ids = torch.tensor(np.concatenate([prompt, response])[None].astype(np.int64))
        logits = model(ids).logits[0, len(prompt) - 1 : -1] / (temperature or 1.0)
        all_NV = logits.log_softmax(-1)
        logprobs.append(all_NV.gather(1, ids[0, len(prompt) :, None])[:, 0])
        entropies.append(-(all_NV.exp() * all_NV).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def score(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Those, and the gradient of the mean log-probability: its norm, and by "gradient of NAME" each tensor's."""
    together, entropies = scores_of(model)
    (-together.mean()).backward()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    gradients = {f"gradient of {name}": parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return gradients | {
        "logprobs": together.detach().numpy(),
        "entropies": entropies.detach().numpy(),
        "grad_norm": norm.numpy(),
    }


def main(directory: Path) -> None:
    for name, (family, changes) in MODELS.items():
        np.savez(directory / f"{name}-transformers.npz", **score(make(directory / name, family, changes)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
