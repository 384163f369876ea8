"""A whole run whose every part is killed in turn, and that is resumed each time, is the run that nobody touched."""

import os
import random
from collections import Counter

import pytest
from killed_run import PROMPTS_PER_EPISODE, WholeRun, kill_and_resume, run_file

from models import make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

PARTS = [("rollout-0", "trainer"), ("coordinator",), ("store",), ("buffer",)]
"""A replica alone is started again, and the run goes on; see test_whole_run.py."""
KILLS = int(os.environ.get("BATON_KILLS", "0"))
SEED = int(os.environ.get("BATON_SEED", "7"))
OTHER_LAYOUT = ("--set", "models.ppo_policy.tensor_model_parallel_size=2")


def victims() -> list[tuple[str, ...]]:
    """Each part once; with BATON_KILLS more, and `baton run` itself."""
    chance = random.Random(SEED)
    return chance.sample(PARTS, len(PARTS)) + chance.choices([*PARTS, ("baton run",)], k=max(KILLS - len(PARTS), 0))


@pytest.mark.parametrize(
    ("generator", "lora"), [("megatron", False), *([("vllm", False), ("vllm", True)] if KILLS else [])]
)
def test_a_run_that_is_killed_and_resumed_again_and_again_is_the_run_that_nobody_touched(tmp_path, capsys, generator, lora):
    model = make_model(tmp_path / "model", layers=2)
    chosen = victims()
    episodes = len(chosen) + 2
    text = run_file(model, episodes, generator, lora=lora)
    run, reference = WholeRun(tmp_path / "killed", text), WholeRun(tmp_path / "whole", text)
    assert reference.start().end() == 0, reference.output
    told, bits = kill_and_resume(run, chosen, SEED, *OTHER_LAYOUT)
    if lora:
        bits = 0  # an adapter's small products depend in their last bit on which requests vLLM happens to have in a batch
    _is_the_same_run(run, reference, bits)
    audit, groups = run.proof(tmp_path)
    assert (list(audit.faults), audit.ended_episodes) == ([], episodes)
    positions = Counter(int(group.partition("-p")[2]) for group in groups)
    first = PROMPTS_PER_EPISODE  # episode 0 is not relayed
    assert positions == dict.fromkeys(range(first, episodes * PROMPTS_PER_EPISODE), 4), "each prompt once, four answers each"
    for of in (run, reference):
        assert of.place.kill_all() == {}
    with capsys.disabled():
        kind = f"{generator}, adapters" if lora else generator
        print(f"resume on {kind}: {'; '.join(told)}: {bits} steps bit for bit, the rest to 1e-5 under TP 2")


def _is_the_same_run(run: WholeRun, reference: WholeRun, bits: int) -> None:
    """Row for row; to the bit in the first `bits` optimizer steps, and to 1e-5 in those of another layout."""
    steps, expected = run.rows("steps.jsonl"), reference.rows("steps.jsonl")
    assert steps[:bits] == expected[:bits]
    assert [row["global_step"] for row in steps] == [row["global_step"] for row in expected]
    for name in ("loss", "value_loss", "grad_norm", "kl_coef", "lr"):
        ours, theirs = ([row[name] for row in rows[bits:]] for rows in (steps, expected))
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5), name
    ours, theirs = run.rows("metrics.jsonl"), reference.rows("metrics.jsonl")
    assert [row["episode"] for row in ours] == [row["episode"] for row in theirs]
    assert [row["policy_version"] for row in ours] == [row["policy_version"] for row in theirs]
    done = steps[bits - 1]["episode"] if bits else 0
    assert ours[:done] == theirs[:done]
    evaluations = [(row["finished_episodes"], row["global_step"]) for row in run.rows("evaluations.jsonl")]
    assert evaluations == [(row["finished_episodes"], row["global_step"]) for row in reference.rows("evaluations.jsonl")]
