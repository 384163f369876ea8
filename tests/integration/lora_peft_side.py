"""`lora_peft_side.py DIRECTORY`: makes every case's model and a PEFT adapter on it, and trains that with PEFT; or
`lora_peft_side.py DIRECTORY KIND`: what PEFT and transformers make of what the trainer exported under that layout."""

import sys
from pathlib import Path

import numpy as np
import torch
from lora_cases import ADAM, CASES, COMPARED, STEPS
from peft import LoraConfig, PeftModel, get_peft_model
from scored_models import MODELS
from transformers import AutoModelForCausalLM
from transformers_side import make, scores_of


def factors(model: PeftModel, *, gradients: bool) -> dict[str, np.ndarray]:
    """By the name in PEFT's files: each factor, or its gradient."""
    found = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            tensor = parameter.grad if gradients else parameter.detach()
            found[name.replace(".default", "").removeprefix("base_model.model.")] = tensor.numpy().copy()
    return found


def adapter(directory: Path, name: str) -> PeftModel:
    """A case's model under fresh factors of which none is zero; both are saved."""
    model_name, sizes, targets, _ = CASES[name]
    model = make(directory / name / "model", *MODELS[model_name])
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(target_modules=targets, **sizes))
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if ".lora_" in key and not parameter.any():
                parameter.copy_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(directory / name / "peft")
    return adapted


def train(model: PeftModel, name: str) -> dict[str, np.ndarray]:
    """Log-probabilities, gradients and their norm before the first step, factors and log-probabilities after the last."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, **ADAM)
    found = {}
    for step in range(STEPS if name in COMPARED else 1):
        logprobs, _ = scores_of(model)
        optimizer.zero_grad()
        (-logprobs.mean()).backward()
        if step == 0:
            found = {f"gradient of {key}": value for key, value in factors(model, gradients=True).items()}
            found["logprobs"] = logprobs.detach().numpy()
            found["grad_norm"] = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained]).numpy()
        optimizer.step()
    found |= {f"trained {key}": value for key, value in factors(model, gradients=False).items()}
    with torch.no_grad():
        return found | {"trained": scores_of(model)[0].numpy()}


@torch.no_grad()
def read(directory: Path, name: str, kind: str) -> dict[str, np.ndarray]:
    """Log-probabilities of the trainer's exports: the adapter on the model, and the merged model."""
    plain = AutoModelForCausalLM.from_pretrained(directory / name / "model", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, directory / name / f"{kind}-adapter")
    merged = AutoModelForCausalLM.from_pretrained(directory / name / f"{kind}-merged", dtype=torch.float32)
    return {"adapter": scores_of(adapted)[0].numpy(), "merged": scores_of(merged)[0].numpy()}


def main(directory: Path, kinds: list[str]) -> None:
    for name in CASES:
        if not kinds:
            np.savez(directory / name / "peft.npz", **train(adapter(directory, name), name))
        for kind in kinds:
            np.savez(directory / name / f"{kind}-read.npz", **read(directory, name, kind))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
