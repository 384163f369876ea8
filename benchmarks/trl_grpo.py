"""TRL's GRPOTrainer on the work of one of our runs: what `episode.py` compares an episode with. Not a benchmark by itself.

    python benchmarks/trl_grpo.py RUN_FILE STEPS RESULT_FILE

Same model, prompts in the same order, chat template, reward functions, group size, token limit and learning rate as the run
file says. Where TRL leaves a choice, the faster one on a CPU is taken: weights and arithmetic in bfloat16, the whole batch
in one pass, no recomputation of activations.
"""

import importlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from baton.config import RunConfig, load_run
from baton.engine import Engine
from services.common.model_store import resolve_model
from services.coordinator.prompts import build_prompts
from services.coordinator.rewards import reward_functions


class StepClock(TrainerCallback):
    """When each step ended, in seconds on the performance counter; and the metrics that TRL logged of it."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.logs: list[dict[str, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.logs.append(logs)


def reward_function(run: RunConfig) -> Any:
    """The run's weighted sum of reward functions, as TRL calls one."""
    parts = []
    for function in reward_functions(run, Engine()):
        module, _, name = function.function.partition(":")
        parts.append((getattr(importlib.import_module(module), name), function.weight, function.params))

    def reward(completions: list[Any], text: list[str], metadata: list[str], **_: Any) -> list[float]:
        return [
            sum(
                weight * function(prompt, turns[-1]["content"], json.loads(facts), **params)
                for function, weight, params in parts
            )
            for turns, prompt, facts in zip(completions, text, metadata, strict=True)
        ]

    return reward


def dataset(run: RunConfig, steps: int) -> Dataset:
    """The prompts of the run's first `steps` episodes."""
    items = build_prompts(run, Engine()).take(0, steps * run.prompts_per_episode, 0)
    return Dataset.from_list(
        [{"prompt": item.messages, "text": item.text, "metadata": json.dumps(item.metadata)} for item in items]
    )


def train(run: RunConfig, steps: int, output: str) -> StepClock:
    """Takes the steps. A step is what an episode of ours is: generate, score, train."""
    clock, model, trainable = StepClock(), str(resolve_model(run.model_name("ppo_policy"))), run.models.ppo_policy
    config = GRPOConfig(
        output_dir=output, use_cpu=True, bf16=True, model_init_kwargs={"dtype": "bfloat16"}, gradient_checkpointing=False,
        per_device_train_batch_size=run.runtime.sample_per_episode, num_generations=run.group_size,
        max_completion_length=run.models.policy.max_new_tokens, temperature=run.models.policy.temperature,
        learning_rate=trainable.lr, weight_decay=trainable.weight_decay, lr_scheduler_type="constant", beta=0.0,
        max_steps=steps, shuffle_dataset=False, seed=run.runtime.seed, logging_steps=1, save_strategy="no", report_to=[],
        disable_tqdm=True,
    )  # fmt: skip
    GRPOTrainer(
        model=model, reward_funcs=reward_function(run), args=config, train_dataset=dataset(run, steps),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"), callbacks=[clock],
    ).train()  # fmt: skip
    return clock


def main() -> None:
    """Writes the seconds of each step but the first, their median, and tokens per step."""
    run, steps, result_file = load_run(Path(sys.argv[1])), int(sys.argv[2]), Path(sys.argv[3])
    with tempfile.TemporaryDirectory() as output:
        clock = train(run, steps, output)
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    lengths = [logs["completions/mean_length"] for logs in clock.logs if "completions/mean_length" in logs]
    tokens = statistics.median(lengths[1:]) * run.runtime.sample_per_episode
    result_file.write_text(json.dumps({"seconds": seconds, "response_tokens": tokens}))


if __name__ == "__main__":
    main()
