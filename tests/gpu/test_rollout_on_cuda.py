"""What a rollout replica can do on an accelerator alone: give its memory back, and take it again."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rollout_side import collect, vllm_service

from baton.clients import RolloutClient, RolloutControlClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.errors import NotReadyError
from models import make_model
from processes import ServiceProcess

pytestmark = [
    pytest.mark.gpu, pytest.mark.timeout(300), pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]  # fmt: skip

PROMPT = [Prompt("a", token_ids=[5, 6, 7])]
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    model = make_model(tmp_path / "model", layers=2)
    replica = vllm_service(
        tmp_path, model, seq_length=64, gpu_memory_utilization=0.3, engine_args={"enable_sleep_mode": True}
    )
    try:
        replica.start(timeout_s=240)
        yield replica
    finally:
        replica.kill()


def free_bytes() -> int:
    return torch.cuda.mem_get_info()[0]


@pytest.mark.parametrize("level", [1, 2])
async def test_a_sleeping_replica_gives_its_memory_back_and_a_woken_one_answers_as_before(
    service: ServiceProcess, level: int
) -> None:
    async with RolloutClient(service.address) as rollout, RolloutControlClient(service.address) as control:
        before = (await collect(rollout.generate(PROMPT, sampling=GREEDY)))["a"].samples
        awake = free_bytes()
        await control.sleep(level)
        assert free_bytes() - awake > 0.2 * torch.cuda.mem_get_info()[1]
        with pytest.raises(NotReadyError, match="it is asleep; call Wake"):
            await collect(rollout.generate(PROMPT, sampling=GREEDY))
        await control.wake()
        if level == 2:
            with pytest.raises(NotReadyError, match="dropped by a sleep of level 2"):
                await collect(rollout.generate(PROMPT, sampling=GREEDY))
        else:
            after = (await collect(rollout.generate(PROMPT, sampling=GREEDY)))["a"].samples
            np.testing.assert_array_equal(after.response_ids.values, before.response_ids.values)


async def test_a_replica_that_sleeps_lighter_after_it_dropped_its_weights_still_asks_for_them(
    service: ServiceProcess,
) -> None:
    async with RolloutClient(service.address) as rollout, RolloutControlClient(service.address) as control:
        await control.sleep(2)
        await control.sleep(1)
        await control.wake()
        with pytest.raises(NotReadyError, match="dropped by a sleep of level 2"):
            await collect(rollout.generate(PROMPT, sampling=GREEDY))
