"""The example of a loop of one's own, run as a user runs it, on a small random model: its reward rises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rollout_side import vllm_service
from training import trainer

from models import make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
ITERATIONS = 12


def test_the_reward_rises_and_the_model_is_exported(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", layers=2)
    rollout = vllm_service(tmp_path, model, seq_length=64)
    run = yaml.safe_load((EXAMPLES / "grpo_loop.yaml").read_text())
    run["models"]["policy"] |= {"model": str(model), "seq_length": 64}
    (tmp_path / "loop.yaml").write_text(yaml.safe_dump(run))
    command = [sys.executable, str(EXAMPLES / "grpo_loop.py"), "--rollout", rollout.address]
    command += ["--export", str(tmp_path / "out"), "--iterations", str(ITERATIONS)]
    command += ["--tokens", "8", "--learning-rate", "6e-3"]
    try:
        rollout.start(240)
        with trainer(tmp_path / "loop.yaml", tmp_path) as process:
            answer = subprocess.run([*command, "--trainer", process.address], capture_output=True, text=True, timeout=800)
    finally:
        rollout.kill()
    assert answer.returncode == 0, answer.stderr[-3000:]
    rewards = [float(found) for found in re.findall(r"iteration \d+: reward ([0-9.]+), loss", answer.stdout)]
    assert len(rewards) == ITERATIONS
    assert sum(rewards[-2:]) > sum(rewards[:2]) + 0.2, rewards
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
