"""A reward model in training: it learns the pairs, scores while it does, and leaves as a sequence classifier."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from roles import step_on, trainer_group, write_roles_file
from training import training_samples, without
from transformers import AutoModelForSequenceClassification

from baton.clients import ScoringClient, TrainerClient
from baton.samples import Samples
from models import make_model
from processes import ServiceProcess, TrainerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 5


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerProcess]:
    """From a language model, whose head is a new one, at TP 2."""
    root = tmp_path_factory.mktemp("reward")
    sizes = {"tensor_model_parallel_size": 2, "lr": 1e-3}
    run_file = write_roles_file(root, make_model(root / "model", layers=2), {"name": "reward_model"}, ppo_policy=sizes)
    with trainer_group(run_file, root, 2) as process:
        yield process


def pairs() -> Samples:
    """Consecutive samples of a group; the first of two is the chosen one."""
    return without(training_samples(), "rewards", "reward_status", "rollout_logprobs")


async def test_it_learns_which_answer_is_better_and_leaves_as_a_classifier_that_transformers_loads(
    process: TrainerProcess, buffer: ServiceProcess, run_id: str, tmp_path: Path
) -> None:
    samples = pairs()
    async with TrainerClient(process.address, timeout_s=60) as client, ScoringClient(process.address) as scoring:
        steps = [await step_on(client, buffer.address, run_id, samples, episode) for episode in range(STEPS)]
        losses = [step.metrics["loss"] for step in steps]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0] - 0.1
        scores = await scoring.compute_scores(samples)
        await client.export_model(str(tmp_path / "export"))
    assert (scores[0::2] > scores[1::2]).all(), "every chosen answer has the better score"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    assert (type(model).__name__, model.config.num_labels) == ("Qwen3ForSequenceClassification", 1)
    rows = zip(samples.prompt_ids.rows(), samples.response_ids.rows(), strict=True)
    with torch.no_grad():
        expected = [float(model(torch.tensor(np.concatenate(row)[None].astype(np.int64))).logits) for row in rows]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("role", "options", "reason"),
    [
        ("reward", {}, "(Qwen3ForCausalLM) has no scalar head score.weight"),
        ("reference", {}, "has a vocabulary of 400 tokens, and the policy"),
        ("ppo_policy", {"--group": "nobody"}, "--group nobody: the run file has no such group; its roles are in trainer"),
    ],
)
def test_a_group_that_cannot_be_is_refused_at_the_start(
    role: str, options: dict[str, str], reason: str, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", layers=1)
    other = make_model(tmp_path / "other", layers=1, vocabulary=400) if role == "reference" else model
    further = {"model": str(other)} if role in ("reward", "reference") else {}
    run_file = write_roles_file(tmp_path, model, {"name": "grpo"}, **{role: further})
    process = TrainerProcess(run_file, tmp_path, 1, *(part for option in options.items() for part in option))
    with pytest.raises(AssertionError, match="ended"):
        process.start(60)
    assert reason in process.output()
