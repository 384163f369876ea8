"""Models in bfloat16: what must not be rounded to it. Weights are trained in float32, so that what is too small for one
update is not too small for many; rotary angles are float32's."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from baton.samples import Ragged, Samples
from models import make_model
from processes import free_port
from ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
UPDATES, RATE = 40, 2e-4
"""Adam moves a weight by about RATE in an update. Between 1 and 2 bfloat16 has steps of 2 ** -7; half of that, at which it
rounds up, is 20 updates away. From 0.5 on it is half as much."""
Weights = dict[str, np.ndarray]


def train(rank: int, size: int, port: int, model: Path, distributed: bool) -> list[Weights]:
    """A rank's weights at the start, after one update and after all."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from baton.config.trainable import TrainableConfig
    from services.trainer.megatron.parallel import Layout
    from services.trainer.packing import pack

    layout = Layout.start(tensor=1, pipeline=1, device="cpu", timeout_s=60, seed=0)
    from services.trainer.megatron.engine import Engine

    config = TrainableConfig(
        dtype="bfloat16", lr=RATE, weight_decay=0.0, clip_grad=0.0, use_distributed_optimizer=distributed
    )
    engine = Engine(config, layout, model, total_steps=UPDATES)
    rng = np.random.default_rng(layout.data_rank)
    row = pack(Samples(
        sample_ids=["a", "b"],
        prompt_ids=Ragged.of([rng.integers(3, 500, 8) for _ in range(2)], np.int32),
        response_ids=Ragged.of([rng.integers(3, 500, 24) for _ in range(2)], np.int32),
    ))  # fmt: skip

    def weights() -> Weights:
        return {name: parameter.detach().float().numpy() for name, parameter in engine.policy.named_parameters()}

    seen = [weights()]
    for update in range(UPDATES):
        engine.forward_backward([row], lambda _, scores: (-scores.logprobs_N.mean() / size, None))
        engine.step()
        if update in (0, UPDATES - 1):
            seen.append(weights())
    torch.distributed.destroy_process_group()
    return seen


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("bfloat16") / "model")


@pytest.fixture(scope="module")
def whole(model: Path) -> list[list[Weights]]:
    """By rank of two, without a distributed optimizer."""
    return run_ranks(train, 2, free_port(), model, False, timeout_s=120)


def large(weights: Weights) -> np.ndarray:
    """The norms' weights, all of which are around one."""
    return np.concatenate([tensor for name, tensor in weights.items() if "layernorm" in name])


def test_updates_too_small_for_bfloat16_add_up(whole: list[list[Weights]]) -> None:
    start, once, often = (large(weights) for weights in whole[0])
    of_them = start > 0.5
    assert of_them.mean() > 0.9
    assert (once == start)[of_them].all(), "one update is lost in rounding, so a bfloat16 optimizer would never move"
    assert (often != start)[of_them].mean() > 0.5
    assert np.abs(often - start).max() < UPDATES * RATE + 2**-7


def test_a_distributed_optimizer_gives_the_same_weights(model: Path, whole: list[list[Weights]]) -> None:
    divided = run_ranks(train, 2, free_port(), model, True, timeout_s=120)
    for rank in range(2):
        for name, tensor in whole[rank][-1].items():
            np.testing.assert_array_equal(divided[rank][-1][name], tensor, err_msg=name)
            np.testing.assert_array_equal(tensor, whole[0][-1][name], err_msg=name)


def angles(rank: int, size: int, port: int, model: Path, positions: int) -> list[np.ndarray]:
    """Of a policy that is trained, and of one that only generates."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from baton.config.trainable import TrainableConfig
    from services.trainer.megatron.parallel import Layout

    layout = Layout.start(tensor=1, pipeline=1, device="cpu", timeout_s=60, seed=0)
    from services.trainer.megatron.engine import Engine
    from services.trainer.megatron.stage import load_policy

    policies = Engine(TrainableConfig(dtype="bfloat16"), layout, model, total_steps=1).policy, load_policy(
        model, layout, torch.bfloat16
    )
    return [policy.angles(torch.arange(positions)).numpy() for policy in policies]


def test_rotary_angles_are_those_of_float32_at_any_position(model: Path) -> None:
    positions, dimensions = 40_000, 32
    frequencies = 10_000.0 ** -(np.arange(0, dimensions, 2) / dimensions)
    expected = np.arange(positions)[:, None] * frequencies
    ((trained, generating),) = run_ranks(angles, 1, free_port(), model, positions, timeout_s=120)
    for found in (trained, generating):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def loaded(rank: int, size: int, port: int, model: Path, directory: Path, distributed: bool) -> list[Weights]:
    """The weights of a checkpoint, and those of another engine that has loaded them without an optimizer and stepped at a
    rate of zero."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from baton.config.trainable import TrainableConfig
    from services.trainer.megatron import checkpoint
    from services.trainer.megatron.parallel import Layout
    from services.trainer.packing import pack

    layout = Layout.start(tensor=1, pipeline=1, device="cpu", timeout_s=60, seed=0)
    from services.trainer.megatron.engine import Engine

    config = TrainableConfig(dtype="bfloat16", lr=0.1, weight_decay=0.0, use_distributed_optimizer=distributed)
    row = pack(Samples(
        sample_ids=["a"], prompt_ids=Ragged.of([range(3, 9)], np.int32), response_ids=Ragged.of([range(9, 30)], np.int32)
    ))  # fmt: skip
    engines = [Engine(config, layout, model, total_steps=2) for _ in range(2)]

    def weights(engine: Engine) -> Weights:
        return {name: parameter.detach().float().numpy() for name, parameter in engine.policy.named_parameters()}

    def step(engine: Engine, rate: float) -> None:
        engine.forward_backward([row], lambda _, scores: (-scores.logprobs_N.mean(), None))
        engine.step(rate)

    step(engines[0], 0.1)
    path = checkpoint.save({"ppo_policy": engines[0]}, directory / str(distributed), {"global_step": 1})
    checkpoint.load_checkpoint(engines[1], None, None, load=path)
    step(engines[1], 0.0)
    return [weights(engine) for engine in engines]


@pytest.mark.parametrize("distributed", [False, True])
def test_weights_that_are_loaded_without_their_optimizer_are_what_it_goes_on_from(
    model: Path, tmp_path: Path, distributed: bool
) -> None:
    ((written, read),) = run_ranks(loaded, 1, free_port(), model, tmp_path, distributed, timeout_s=120)
    for name, tensor in written.items():
        np.testing.assert_array_equal(read[name], tensor, err_msg=name)
