"""A training loop of a program's own: gradients add up until the update, and nothing that is sent again counts twice."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from roles import step_on, trainer_group, write_roles_file
from training import SIZE, logprobs_of, training_samples, without

from baton.clients import LoopClient, ScoringClient, TrainerClient
from baton.clients.loop import Accumulated
from baton.errors import InvalidRequestError, NotReadyError
from baton.samples import Samples
from models import make_model
from processes import ServiceProcess, TrainerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KEPT = {"learning_rate": 0.0}
"""An update that leaves the weights as they are, so that tests may compare."""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerProcess]:
    """PP 2 x DP 2 with a tied head and a distributed optimizer: every sum over ranks that must be taken once."""
    root = tmp_path_factory.mktemp("loop")
    sizes = {"pipeline_model_parallel_size": 2, "data_parallel_size": 2, "use_distributed_optimizer": True, "lr": 1e-3}
    run_file = write_roles_file(root, make_model(root / "model", layers=2), {"name": "grpo"}, ppo_policy=sizes, reference={})
    with trainer_group(run_file, root, 4) as process:
        yield process


@dataclass
class Place:
    """Clients of one trainer."""

    loop: LoopClient
    trainer: TrainerClient
    scoring: ScoringClient

    async def norm(self, *parts: Samples, **options: object) -> float:
        """The gradient norm after one call for each part, scaled to the mean over all."""
        total = sum(map(len, parts))
        for part in parts:
            await self.loop.forward_backward(part, scale=len(part) / total, **options)
        return (await self.loop.optim_step(**KEPT)).grad_norm


@pytest.fixture
async def place(process: TrainerProcess) -> AsyncIterator[Place]:
    async with (
        LoopClient(process.address, timeout_s=60) as loop,
        TrainerClient(process.address, timeout_s=60) as trainer,
        ScoringClient(process.address) as scoring,
    ):
        yield Place(loop, trainer, scoring)


def even_halves() -> list[Samples]:
    """Two halves with as many tokens, of groups 0 and 2, and 1 and 3: their mean is the whole's."""
    samples = training_samples()
    lengths = samples.response_ids.lengths
    samples = replace(samples, group_reward_std=np.ones(SIZE, np.float32))
    order = sorted(range(SIZE), key=lambda i: int(lengths[i]))
    return [samples.take(sorted(order[start::2])) for start in (0, 1)]


async def test_gradients_of_several_calls_add_up_to_that_of_one(place: Place) -> None:
    halves = even_halves()
    sequence = {"loss": {"name": "grpo", "loss_normalization": "sequence"}}
    whole = await place.norm(Samples.concat(halves), **sequence)
    assert whole > 0.01
    assert await place.norm(*halves, **sequence) == pytest.approx(whole, rel=1e-5)
    for size in (1, 16):
        assert await place.norm(Samples.concat(halves), **sequence, micro_batch_size=size) == pytest.approx(whole, rel=1e-5)


async def test_a_step_of_the_trainer_is_what_the_two_verbs_make(place: Place, buffer: ServiceProcess, run_id: str) -> None:
    samples = training_samples()
    done = await place.loop.forward_backward(samples)
    before = await logprobs_of(place.trainer, samples)  # scoring in between leaves the gradients alone
    update = await place.loop.optim_step(**KEPT)
    assert np.array_equal((await logprobs_of(place.trainer, samples)).values, before.values)
    answer = await step_on(place.trainer, buffer.address, run_id, samples)
    assert update.grad_norm == pytest.approx(answer.metrics["grad_norm"], rel=1e-5)
    assert done.metrics["loss"] == pytest.approx(answer.metrics["loss"], rel=1e-5, abs=1e-6)
    assert (done.response_tokens, done.computed_tokens) == (answer.response_tokens, answer.computed_tokens)
    assert answer.global_step == update.global_step + 1


async def test_a_call_that_is_sent_again_counts_once(place: Place) -> None:
    samples = training_samples()
    once = await place.norm(samples)
    first = await place.loop.forward_backward(samples, request_id="a")
    assert await place.loop.forward_backward(samples, request_id="a") == first
    update = await place.loop.optim_step(request_id="u", **KEPT)
    assert update.grad_norm == pytest.approx(once, rel=1e-5)
    assert await place.loop.optim_step(request_id="u", **KEPT) == update
    assert (await place.trainer.get_status()).global_step == update.global_step
    with pytest.raises(NotReadyError, match="no gradient is accumulated"):
        await place.loop.optim_step(**KEPT)


async def test_a_share_of_nothing_adds_nothing_and_one_that_is_no_number_is_refused(place: Place) -> None:
    samples = training_samples()
    once = await place.norm(samples)
    await place.loop.forward_backward(samples.take(range(8)), scale=0.0)
    assert await place.norm(samples) == pytest.approx(once, rel=1e-5)
    with pytest.raises(InvalidRequestError, match="the loss has the scale nan"):
        await place.loop.forward_backward(samples, scale=float("nan"))


async def test_a_checkpoint_that_is_loaded_leaves_no_gradient_of_the_weights_before(place: Place, tmp_path: Path) -> None:
    samples = training_samples()
    await place.norm(samples)
    saved = await place.trainer.save_checkpoint(str(tmp_path))
    await place.loop.forward_backward(samples)
    await place.trainer.load_checkpoint(saved.path)
    with pytest.raises(NotReadyError, match="no gradient is accumulated"):
        await place.loop.optim_step(**KEPT)


async def test_the_scores_are_what_the_loss_was_computed_from_in_the_samples_order(place: Place) -> None:
    samples = training_samples()
    done = await place.loop.forward_backward(samples, want_scores=True)
    expected = await logprobs_of(place.trainer, samples)
    assert np.array_equal(done.scores.lengths, samples.response_ids.lengths)
    np.testing.assert_allclose(done.scores.values, expected.values, atol=1e-5)
    await place.loop.optim_step(**KEPT)


async def test_a_rate_of_ones_own_holds_for_one_update(place: Place) -> None:
    samples = training_samples()
    rates = []
    for options in ({"learning_rate": 5e-4, "weight_decay": 0.0}, {}):
        await place.loop.forward_backward(samples)
        rates.append((await place.loop.optim_step(**options)).learning_rate)
    assert rates == [5e-4, 1e-3]


@pytest.mark.parametrize("options", [{"learning_rate": float("nan")}, {"weight_decay": -1.0}], ids=str)
async def test_a_rate_that_would_spoil_the_weights_is_refused_and_the_gradient_stays(place: Place, options: dict) -> None:
    await place.loop.forward_backward(training_samples())
    with pytest.raises(InvalidRequestError, match=f"{next(iter(options))} is .*; send a finite number of at least 0"):
        await place.loop.optim_step(**options)
    assert (await place.loop.optim_step(**KEPT)).grad_norm > 0


async def losses(place: Place, samples: Samples, name: str) -> list[Accumulated]:
    done = []
    for _ in range(5):
        done.append(await place.loop.forward_backward(samples, loss={"name": name}))
        await place.loop.optim_step()
    return done


async def test_given_answers_become_likelier_by_sft_and_chosen_ones_by_dpo(place: Place) -> None:
    plain = without(training_samples(), "rewards", "reward_status", "rollout_logprobs", "group_ids")
    told = [done.metrics["loss"] for done in await losses(place, plain, "sft")]
    assert told == sorted(told, reverse=True)
    assert told[-1] < told[0] - 0.1
    pairs = replace(plain, reference_logprobs=await logprobs_of(place.trainer, plain, role="reference"))
    margins = [done.metrics["margin"] for done in await losses(place, pairs, "dpo")]
    assert margins == sorted(margins)
    assert margins[-1] > margins[0] + 0.1


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        ({"name": "nonsense"}, "loss: .*nonsense.*write it like the run file's `algorithm` section"),
        ({"name": "grpo", "clip": 1}, "loss: grpo.clip: Extra inputs"),
        ({"name": "grpo", "loss_normalization": "constant"}, "loss: algorithm.normalization_length: is missing"),
        ({"name": "ppo", "target": 1}, "loss: algorithm.target: got 1.0; has no effect with fix_kl_coef: true"),
        ({"name": "dpo"}, "lack reference_logprobs"),
        ({"name": "reward_model"}, r"models\.ppo_policy makes logprobs, and reward_model has a loss of scores only"),
    ],
)
async def test_a_loss_that_cannot_be_is_refused_and_adds_nothing(loss: dict, reason: str, place: Place) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        await place.loop.forward_backward(training_samples(), loss=loss)
    with pytest.raises(NotReadyError, match="no gradient is accumulated"):
        await place.loop.optim_step(**KEPT)


async def test_a_role_that_is_not_trained_and_a_call_without_samples_are_refused(place: Place) -> None:
    with pytest.raises(InvalidRequestError, match="group trainer trains ppo_policy, and not reference"):
        await place.loop.forward_backward(training_samples(), role="reference")
    with pytest.raises(InvalidRequestError, match="no samples"):
        await place.loop.forward_backward(training_samples().take([]))
