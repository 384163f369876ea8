"""Roles of a run over two trainer groups: what each evaluates, what a PPO step changes, and what is refused by name."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from roles import ppo_samples, reshaped, step_on, trainer_group, write_roles_file
from training import training_samples, without
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from baton.clients import BufferClient, LoopClient, ScoringClient, TrainerClient
from baton.errors import InvalidRequestError
from baton.samples import Ragged, Samples
from models import make_model
from processes import ServiceProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PPO = {"name": "ppo", "fix_kl_coef": False, "init_kl_coef": 0.05, "horizon": 16}


@dataclass
class Groups:
    """Addresses of both groups, and where their models lie."""

    trainer: str
    scorers: str
    model: Path
    reward: Path


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Groups]:
    """`trainer` at TP 2 x DP 2 with a distributed optimizer; `scorers` at PP 2."""
    root = tmp_path_factory.mktemp("roles")
    model = make_model(root / "model", layers=2)
    reward = make_model(root / "reward", layers=2, labels=1, seed=1)
    trained = {"lr": 1e-3, "use_distributed_optimizer": True}
    run_file = write_roles_file(
        root, model, PPO, reference={}, value={}, ppo_value=trained,
        ppo_policy=trained | {"tensor_model_parallel_size": 2, "data_parallel_size": 2},
        reward={"model": str(reward), "group": "scorers", "pipeline_model_parallel_size": 2},
    )  # fmt: skip
    with (
        trainer_group(run_file, root / "main", 4) as main,
        trainer_group(run_file, root / "scorers", 2, "scorers") as scorers,
    ):
        yield Groups(main.address, scorers.address, model, reward)


@pytest.fixture
async def scoring(groups: Groups) -> AsyncIterator[ScoringClient]:
    async with ScoringClient(groups.trainer) as client:
        yield client


@pytest.fixture
async def client(groups: Groups) -> AsyncIterator[TrainerClient]:
    async with TrainerClient(groups.trainer, timeout_s=60) as client:
        yield client


async def test_status_tells_a_groups_roles_and_what_they_make(client: TrainerClient, groups: Groups) -> None:
    status = await client.get_status()
    told = {role.role: (role.head, role.trained) for role in status.roles}
    assert (status.group, told) == (
        "trainer",
        {
            "ppo_policy": ("logprobs", True),
            "reference": ("logprobs", False),
            "value": ("values", False),
            "ppo_value": ("values", True),
        },
    )
    async with TrainerClient(groups.scorers) as scorers:
        status = await scorers.get_status()
        assert (status.group, [role.role for role in status.roles]) == ("scorers", ["reward"])
        assert status.pipeline_parallel_size == 2


async def test_a_step_of_ppo_changes_policy_and_critic_and_leaves_the_reference(
    client: TrainerClient, scoring: ScoringClient, buffer: ServiceProcess, run_id: str
) -> None:
    samples = await ppo_samples(scoring)
    before = await scoring.compute_logprobs(samples)
    answer = await step_on(client, buffer.address, run_id, samples)
    after = await ppo_samples(scoring)
    assert np.array_equal(after.reference_logprobs.values, samples.reference_logprobs.values)
    assert np.abs((await scoring.compute_logprobs(samples)).values - before.values).max() > 1e-3
    assert np.abs(after.values.values - samples.values.values).max() > 1e-3
    by_ppo_value = await scoring.compute_values(samples, role="ppo_value")
    assert np.array_equal(by_ppo_value.values, after.values.values), "value is ppo_value's own model"
    told = {
        "loss", "grad_norm", "lr", "skipped", "value_loss", "value_grad_norm", "value_lr", "value_skipped",
        "explained_variance", "kl_coef", "mismatch_kl", "entropy",
    }  # fmt: skip
    assert told <= set(answer.metrics)
    assert answer.metrics["value_lr"] == answer.metrics["lr"] == 1e-3
    assert answer.response_tokens == samples.response_ids.lengths.sum()
    assert await client.train_step(run_id, 0, pass_index=0, step_index=0, buffer_address=buffer.address) == answer
    async with BufferClient(buffer.address) as store:
        assert (await store.get_episode(run_id, 0)).trained == len(samples)


async def test_answers_are_in_the_samples_order_however_ranks_and_messages_share_them(scoring: ScoringClient) -> None:
    samples = training_samples()
    values, logprobs = await scoring.compute_values(samples), await scoring.compute_logprobs(samples)
    for i in (0, 5, 15):
        alone = samples.take([i])
        np.testing.assert_allclose(values.rows()[i], (await scoring.compute_values(alone)).values, atol=1e-5)
        np.testing.assert_allclose(logprobs.rows()[i], (await scoring.compute_logprobs(alone)).values, atol=1e-5)


async def test_scores_are_those_of_transformers_at_the_last_token(groups: Groups) -> None:
    samples = training_samples()
    responses = samples.response_ids.rows()
    responses[3] = responses[3][:0]  # its score is read at the prompt's last token
    samples = reshaped(without(samples, "rollout_logprobs"), responses)
    model = AutoModelForSequenceClassification.from_pretrained(groups.reward).eval()
    rows = zip(samples.prompt_ids.rows(), samples.response_ids.rows(), strict=True)
    with torch.no_grad():
        expected = [float(model(torch.tensor(np.concatenate(row)[None].astype(np.int64))).logits) for row in rows]
    async with ScoringClient(groups.scorers) as scorers:
        scores = await scorers.compute_scores(samples)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert np.std(expected) > 0.1


async def test_a_reference_without_options_is_the_policys_first_weights_in_the_policys_number_format(
    groups: Groups, scoring: ScoringClient
) -> None:
    samples = training_samples()
    model = AutoModelForCausalLM.from_pretrained(groups.model).eval()
    found = (await scoring.compute_logprobs(samples, role="reference")).rows()
    for i in (0, 9):
        prompt, response = samples.prompt_ids.rows()[i], samples.response_ids.rows()[i].astype(np.int64)
        ids = torch.tensor(np.concatenate([prompt, response])[None].astype(np.int64))
        with torch.no_grad():
            logprobs = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        np.testing.assert_allclose(found[i], logprobs[range(len(response)), response], atol=1e-5)  # bfloat16: 1e-2


async def test_a_role_that_a_group_does_not_host_is_refused_by_name(scoring: ScoringClient, groups: Groups) -> None:
    few = training_samples().take([0])
    with pytest.raises(InvalidRequestError, match=r"group trainer hosts .*, and not reward; ask the group that models\.rew"):
        await scoring.compute_scores(few)
    with pytest.raises(InvalidRequestError, match=r"the run file has no models\.critic"):
        await scoring.compute_values(few, role="critic")
    with pytest.raises(InvalidRequestError, match=r"models\.ppo_policy makes logprobs, and no values"):
        await scoring.compute_values(few, role="ppo_policy")
    async with ScoringClient(groups.scorers) as scorers, TrainerClient(groups.scorers, timeout_s=60) as trainer:
        with pytest.raises(InvalidRequestError, match="group scorers hosts reward, and not reference"):
            await scorers.compute_logprobs(few, role="reference")
        with pytest.raises(InvalidRequestError, match="group scorers trains nothing, and not ppo_policy"):
            await trainer.open_weight_group(1)


async def test_a_step_without_the_critics_values_or_the_references_log_probabilities_is_refused(
    client: TrainerClient, scoring: ScoringClient, buffer: ServiceProcess, run_id: str
) -> None:
    samples = await ppo_samples(scoring)
    for number, column in enumerate(("values", "reference_logprobs")):
        with pytest.raises(InvalidRequestError, match=f"lack {column}"):
            await step_on(client, buffer.address, f"{run_id}-{number}", without(samples, column))


async def test_empty_responses_and_equal_rewards_train_and_give_finite_numbers(
    client: TrainerClient, scoring: ScoringClient, buffer: ServiceProcess, run_id: str
) -> None:
    samples = await ppo_samples(scoring)
    samples.rewards[:] = 0.5
    responses = samples.response_ids.rows()
    responses[2] = responses[2][:0]
    columns = {"rollout_logprobs": -6.0, "reference_logprobs": -6.1, "values": 0.1}
    answer = await step_on(client, buffer.address, run_id, reshaped(samples, responses, **columns))
    assert all(np.isfinite(value) for value in answer.metrics.values()), dict(answer.metrics)
    nothing = reshaped(samples, [row[:0] for row in responses], **columns)
    answer = await step_on(client, buffer.address, f"{run_id}-nothing", nothing)
    assert (answer.response_tokens, answer.metrics["loss"], answer.metrics["grad_norm"]) == (0, 0.0, 0.0)
    assert all(np.isfinite(value) for value in answer.metrics.values()), dict(answer.metrics)


async def test_a_call_of_the_loop_with_fewer_micro_batches_than_copies_adds_the_same_gradient(
    groups: Groups, scoring: ScoringClient
) -> None:
    samples, found = await ppo_samples(scoring), []
    async with LoopClient(groups.trainer) as loop:
        for size in (4, len(samples)):
            done = await loop.forward_backward(samples, loss={"name": "ppo"}, micro_batch_size=size)
            update = await loop.optim_step(learning_rate=0.0)
            found.append(done.metrics | {"grad_norm": update.grad_norm})
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-6)


async def test_the_kl_coefficient_of_an_update_is_adapted_to_the_samples_of_all_its_calls(
    groups: Groups, scoring: ScoringClient
) -> None:
    samples = await ppo_samples(scoring)
    kl = np.where(np.arange(len(samples)) < 4, 5.0, 6.4)  # of each response; the target is 6
    away = np.repeat(kl / samples.response_ids.lengths, samples.response_ids.lengths)
    reference = samples.rollout_logprobs.values - away.astype(np.float32)
    samples = replace(samples, reference_logprobs=Ragged(reference, samples.response_ids.lengths))
    async with LoopClient(groups.trainer) as loop:

        async def coefficient() -> float:
            done = await loop.forward_backward(samples, role="ppo_value")
            await loop.optim_step(role="ppo_value", learning_rate=0.0)
            return done.metrics["kl_coef"]

        before = await coefficient()
        for rows in (range(12), range(12, 16)):
            await loop.forward_backward(samples.take(rows), scale=len(rows) / len(samples))
        await loop.optim_step(learning_rate=0.0)
        assert await coefficient() / before == pytest.approx(1 + (kl.mean() / 6 - 1) * 16 / PPO["horizon"], rel=1e-5)


async def test_a_critic_whose_gradient_is_not_finite_is_skipped_alone_and_too_many_stop_both(
    client: TrainerClient, scoring: ScoringClient, buffer: ServiceProcess, run_id: str
) -> None:
    samples = await ppo_samples(scoring)
    huge = np.zeros_like(samples.values.values)
    huge[7] = 3e38  # advantages are whitened, returns are not
    broken = replace(samples, token_rewards=Ragged(huge, samples.values.lengths))
    for number in (1, 2):
        answer = await step_on(client, buffer.address, f"{run_id}-{number}", broken)
        assert (answer.metrics["skipped"], answer.metrics["value_skipped"]) == (0.0, 1.0)
    before = await numbers(scoring, samples)
    with pytest.raises(InvalidRequestError, match=r"models\.ppo_value\.max_skipped_steps is 2; the weights are unchanged"):
        await step_on(client, buffer.address, f"{run_id}-3", broken)
    assert all(map(np.array_equal, await numbers(scoring, samples), before)), "neither model has moved"


async def test_a_checkpoint_holds_both_models_and_the_kl_coefficient_and_an_export_is_a_directory_for_each(
    client: TrainerClient, scoring: ScoringClient, buffer: ServiceProcess, run_id: str, tmp_path: Path
) -> None:
    samples = await ppo_samples(scoring)
    await step_on(client, buffer.address, run_id, samples)
    saved, at_save = await client.save_checkpoint(str(tmp_path)), await numbers(scoring, samples)
    first = await step_on(client, buffer.address, run_id, samples, episode_id=1)
    moved = await numbers(scoring, samples)
    assert not any(map(np.array_equal, moved, at_save))
    await client.load_checkpoint(saved.path)
    assert all(map(np.array_equal, await numbers(scoring, samples), at_save))
    again = await step_on(client, buffer.address, f"{run_id}-again", samples)
    assert again.global_step == first.global_step
    for name in ("kl_coef", "loss", "value_loss", "grad_norm", "value_grad_norm"):
        assert again.metrics[name] == pytest.approx(first.metrics[name], rel=1e-6), name
    for ours, theirs in zip(await numbers(scoring, samples), moved, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)

    await client.export_model(str(tmp_path / "export"))
    critic = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export-value").eval()
    await check_values(scoring, critic, samples)


async def numbers(scoring: ScoringClient, samples: Samples) -> list[np.ndarray]:
    """What policy and critic say now."""
    answers = await scoring.compute_logprobs(samples), await scoring.compute_values(samples)
    return [answer.values for answer in answers]


async def check_values(scoring: ScoringClient, critic: torch.nn.Module, samples: Samples) -> None:
    """The trainer's critic is that of transformers."""
    values = (await scoring.compute_values(samples)).rows()
    for i in (0, 9):
        prompt, response = samples.prompt_ids.rows()[i], samples.response_ids.rows()[i]
        ids = torch.tensor(np.concatenate([prompt, response])[None].astype(np.int64))
        with torch.no_grad():
            expected = critic.score(critic.model(ids).last_hidden_state)[0, len(prompt) - 1 : -1, 0]
        np.testing.assert_allclose(values[i], expected, atol=1e-4)
