"""A whole run that is killed at random moments and resumed, and one that is left in peace, to compare it with."""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml
from cli_process import Place

from baton.clients import LedgerClient, RelayClient
from baton.run_checkpoints import run_checkpoints
from processes import ServiceProcess, StoreProcess

PROGRAM = """
from baton.engine import Engine, Model, RLHFEngine, reward

@reward(timeout_s=20)
def few_distinct_words(prompt, response, metadata):
    words = response.split()
    return 1.0 - len(set(words)) / max(len(words), 1)

policy, reference, value, ppo_policy, ppo_value = map(Model, ("policy", "reference", "value", "ppo_policy", "ppo_value"))
prompts = [{"prompt": f"w{i} w{i + 1} w{i + 2}"} for i in range(24)]
engine = RLHFEngine(policy, reference, None, value, ppo_policy, ppo_value, prompts=prompts, rewards=[few_distinct_words])
"""
PROMPTS_PER_EPISODE = 4
TIMING = re.compile(r"seconds/|publish/|.*tokens_per_s$")
"""Metrics that differ from run to run."""
ENDS_WITHIN_S = 900.0


def run_file(model: Path, episodes: int, generator: str, *, lora: bool = False) -> str:
    """All that has a state: PPO with a critic, an adaptive KL coefficient, a decaying learning rate, relay, evaluations.
    With `lora`, adapters of policy and critic over one model."""
    layers = "ColumnParallelLinear,RowParallelLinear,LinearLayer"
    adapters = {"lora": {"enable_lora": True, "lora_scaling": 16.0, "lora_layer": layers}}
    trained = {
        "lr": 1e-3, "dtype": "float32", "omp_threads": 1, "lr_decay_style": "cosine", "lr_decay_iters": 100,
        "lr_warmup_iters": 3,
    } | (adapters if lora else {})  # fmt: skip
    return yaml.safe_dump({
        "runtime": {
            "num_episode": episodes, "sample_per_episode": 4 * PROMPTS_PER_EPISODE, "num_inference_per_prompt": 4,
            "train_micro_batch_size": 4, "train_global_batch_size": 8, "num_training_epoch": 2, "save_episode_interval": 1,
            "eval_episode_interval": 2, "max_relay_episode": -1, "relay_episode_offset": 1, "relay_sample_fn": "uniform",
            "relay_sample_params": {"k": 16},
        },
        "models": {
            "policy": {
                "model": str(model), "seq_length": 64, "max_new_tokens": 12, "dtype": "float32", "generator": generator,
                "omp_threads": 1,
            } | ({"enforce_eager": True} if generator == "vllm" else {}),
            "ppo_policy": trained, "ppo_value": trained, "reference": {}, "value": {},
        },
        "algorithm": {"name": "ppo", "fix_kl_coef": False, "init_kl_coef": 0.1, "target": 0.5, "horizon": 64},
        "prompts": {"source": "app", "holdout": 4, "shuffle": True},
    })  # fmt: skip


class WholeRun:
    """One run in a directory of its own."""

    def __init__(self, directory: Path, text: str, program: str = PROGRAM) -> None:
        directory.mkdir()
        self.place = Place(directory, text, stand_ins=False)
        (directory / "program.py").write_text(program)
        self.folder = self.place.runs / "a"
        self._process: subprocess.Popen[str] | None = None
        self.output = ""

    def start(self, *options: str) -> "WholeRun":
        """Begins it."""
        return self._start("run.yaml", "--run-id", "a", "--app", "program:engine", *options)

    def resume(self, *options: str) -> "WholeRun":
        """Goes on with it."""
        return self._start("--resume", str(self.folder), *options)

    def _start(self, *arguments: str) -> "WholeRun":
        self._process = self.place.start("run", *arguments, stderr=subprocess.STDOUT)
        self.output = ""
        return self

    def until(self, pattern: str) -> None:
        """Reads its output up to a line that matches."""
        for line in self._process.stdout:
            self.output += line
            if re.search(pattern, line):
                return
        raise AssertionError(f"no line matches {pattern}:\n{self.output}")

    def kill(self, victim: str) -> None:
        """kill -9."""
        if victim == "baton run":
            self._process.kill()
        else:
            os.kill(self._pid(victim), signal.SIGKILL)

    def end(self) -> int:
        """Waits for its end; its exit code."""
        rest, _ = self._process.communicate(timeout=ENDS_WITHIN_S)
        self.output += rest
        return self._process.returncode

    def _pid(self, name: str) -> int:
        if name != "store":
            return json.loads((self.folder / "ready" / f"{name}.json").read_text())["pid"]
        keeper = json.loads((self.folder / "deployment.json").read_text())["services"]["store"]["pid"]
        return int(Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()[0])

    def rows(self, name: str) -> list[dict[str, Any]]:
        """A file's rows, without what is measured in seconds."""
        lines = (self.folder / name).read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if not TIMING.match(key)} for line in lines]

    def proof(self, directory: Path) -> tuple[Any, list[str]]:
        """The ledger's audit, and the group of every sample in the history, from the store's files alone."""
        store = StoreProcess(self.folder / "store")
        buffer = ServiceProcess("buffer", self.folder / "run.yaml", directory, "--store", store.url)
        try:
            store.start()
            return asyncio.run(_ask(buffer.start().address))
        finally:
            buffer.kill()
            store.kill()


async def _ask(address: str) -> tuple[Any, list[str]]:
    async with LedgerClient(address, timeout_s=20) as ledger, RelayClient(address, timeout_s=20) as relay:
        groups = []
        for episode in await relay.list_history("a"):
            for part in await relay.read_columns("a", episode.episode_id, ["group_ids"]):
                groups += part.group_ids
        return await ledger.audit("a"), groups


def kill_and_resume(run: WholeRun, victims: list[tuple[str, ...]], seed: int, *last: str) -> tuple[list[str], int]:
    """Starts the run, and kills some victims at a random moment after the next episode that is done; resumes it, and kills
    others, ... The last time it is resumed with the options `last`, to its end.

    Returns when each was killed, in words, and the optimizer step of the checkpoint that the last sitting went on from.
    """
    chance, told = random.Random(seed), []
    run.start()
    for number, some in enumerate(victims, start=1):
        run.until(r"^episode \d+ done")
        delay = chance.uniform(0, 1)
        time.sleep(delay)
        for victim in some:
            run.kill(victim)
        told.append(f"{' and '.join(some)} {delay:.2f} s after {run.output.splitlines()[-1].partition(' done')[0]}")
        assert run.end() != 0, run.output
        step = run_checkpoints(run.folder)[-1].global_step
        run.resume(*(last if number == len(victims) else ()))
    assert run.end() == 0, run.output
    return told, step
