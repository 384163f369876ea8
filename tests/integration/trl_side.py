"""TRL's losses and their gradients on tensors from a file. Run by test_losses_match_trl.py, with TRL in the PYTHONPATH.

    python trl_side.py DIRECTORY     reads inputs.npz and cases.json there, and a tiny model; writes answers.npz

TRL's own trainers compute the losses, from a run's arguments to the mean over the batch. Only what their models would say of
the tokens is given: log-probabilities of the policy, with gradient.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

Tensors = dict[str, torch.Tensor]
COMMON = {"use_cpu": True, "report_to": [], "bf16": False, "per_device_train_batch_size": 4, "gradient_checkpointing": False}


def grpo(directory: Path, inputs: Tensors, policy: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """GRPOTrainer's loss. Beyond its options: which `advantages`, whether `old` log-probabilities are given, and the cap of
    the importance weight that corrects what vLLM sampled."""
    advantages = inputs[options.pop("advantages")]
    cap, is_old_given = options.pop("correction", None), options.pop("old", True)
    dataset = Dataset.from_list([{"prompt": "w1 w2"}] * 4)
    args = GRPOConfig(output_dir=str(directory / "out"), num_generations=4, max_completion_length=7, **COMMON, **options)

    class Trainer(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
            return policy, torch.zeros_like(policy).detach(), None

    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(directory / "model"), reward_funcs=lambda **_: [0.0],
        args=args, train_dataset=dataset, processing_class=AutoTokenizer.from_pretrained(directory / "model"),
    )  # fmt: skip
    mask = inputs["mask"].long()
    batch = {
        "prompt_ids": torch.ones(4, 2, dtype=torch.long), "prompt_mask": torch.ones(4, 2, dtype=torch.long),
        "completion_ids": torch.ones_like(mask), "completion_mask": mask, "advantages": advantages,
        "old_per_token_logps": inputs["old"] if is_old_given else None, "ref_per_token_logps": inputs["reference"],
    }  # fmt: skip
    if cap is not None:
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
        batch["importance_sampling_ratio"] = (policy.detach() - inputs["old"]).exp().clamp(max=cap)
    trainer.model.eval()  # in training TRL divides by the number of accumulated batches besides
    return trainer._compute_loss(trainer.model, batch)


def dpo(directory: Path, inputs: Tensors, policy: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """DPOTrainer's loss. TRL has the chosen responses first, then the rejected ones."""
    dataset = Dataset.from_list([{"prompt": "w1", "chosen": "w2", "rejected": "w3"}] * 4)
    args = DPOConfig(output_dir=str(directory / "out"), **COMMON, **options)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(directory / "model"), args=args, train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(directory / "model"),
    )  # fmt: skip
    trainer.precompute_ref_logps = True
    order = [0, 2, 1, 3]
    mask, reference = inputs["mask"][order], (inputs["reference"] * inputs["mask"])[order].sum(1)
    shown = (policy * inputs["mask"])[order]
    zeros = torch.zeros_like(shown)

    def model(**_: Any) -> SimpleNamespace:
        return SimpleNamespace(
            log_probs=shown, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros
        )

    prompt = torch.zeros(4, 1, dtype=torch.long)
    completion_mask = torch.cat([prompt, mask.long()], 1)
    batch = {
        "input_ids": torch.ones_like(completion_mask), "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask, "ref_chosen_logps": reference[:2], "ref_rejected_logps": reference[2:],
    }  # fmt: skip
    return trainer._compute_loss(model, batch, False)


def main() -> None:
    directory = Path(sys.argv[1])
    answers = {}
    for name, case in json.loads((directory / "cases.json").read_text()).items():
        inputs = {key: torch.from_numpy(array) for key, array in np.load(directory / "inputs.npz").items()}
        policy = inputs["policy"].requires_grad_()
        loss = {"grpo": grpo, "dpo": dpo}[case["trainer"]](directory, inputs, policy, dict(case["options"]))
        loss.backward()
        answers |= {f"{name}/loss": loss.item(), f"{name}/gradient": policy.grad.numpy()}
    np.savez(directory / "answers.npz", **answers)


if __name__ == "__main__":
    main()
