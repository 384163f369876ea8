"""What tests of a rollout service share, whichever engine is behind it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from baton.clients import RolloutClient
from baton.clients.rollout import Generation, Prompt, SamplingParams
from baton.local.process_tree import descendants
from baton.samples import FinishReason
from processes import ServiceProcess


def vllm_service(directory: Path, model: Path, lora: dict[str, Any] | None = None, **policy: Any) -> ServiceProcess:
    """Not started: a service with these options of the policy, and of the trained model's `lora`, on a small model in
    float32."""
    options = {"model": str(model), "dtype": "float32", "enforce_eager": True, "max_new_tokens": 8} | policy
    run_file = directory / "run.yaml"
    trained = {"ppo_policy": {"lora": {"enable_lora": True} | lora}} if lora is not None else {}
    run_file.write_text(yaml.safe_dump({"runtime": {}, "models": {"policy": options} | trained}))
    return ServiceProcess("rollout", run_file, directory)


async def collect(stream: AsyncIterator[Generation]) -> dict[str, Generation]:
    """The groups by id."""
    return {group.samples.group_ids[0]: group async for group in stream}


@contextmanager
def engine_stopped(process: ServiceProcess) -> Iterator[None]:
    """What the replica has under way cannot end meanwhile, however long it takes us; the service itself answers."""
    pids = descendants(process.popen.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def until_running(rollout: RolloutClient, responses: int) -> None:
    """Until so many are under way, as will be the case by itself only if they outlast our question."""
    while (await rollout.get_status()).running_requests != responses:
        await asyncio.sleep(0.01)


async def until_begun(rollout: RolloutClient, responses: int) -> None:
    """Until so many are under way, and each has tokens: they were first, so one that comes now has its own after theirs."""
    while (await rollout.get_status()).running_requests < responses:
        await asyncio.sleep(0.01)
    sampling = SamplingParams(n=1, max_new_tokens=16, ignore_eos=True)
    await collect(rollout.generate([Prompt("after them", token_ids=[9])], sampling=sampling))


async def check_each_group_is_whole(rollout: RolloutClient, version: int) -> None:
    """Prompts in all three forms: each answer has n samples with ids, log-probabilities and the version, and each prompt a
    length."""
    prompts = [
        Prompt("a", token_ids=[5, 6, 7]),
        Prompt("b", text="w1 w2"),
        Prompt("c", chat=[{"role": "user", "content": "w3"}]),
    ]
    groups = await collect(rollout.generate(prompts, sampling=SamplingParams(n=3), episode_id=4))
    assert set(groups) == {"a", "b", "c"}
    for name, group in groups.items():
        samples = group.samples
        assert samples.sample_ids == [f"{name}/{i}" for i in range(3)]
        assert len(group.texts) == 3
        assert samples.episode_ids.tolist() == [4] * 3
        assert samples.policy_version_min.tolist() == samples.policy_version_max.tolist() == [version] * 3
        np.testing.assert_array_equal(samples.rollout_logprobs.lengths, samples.response_ids.lengths)
        assert (samples.rollout_logprobs.values < 0).all()
        assert (samples.model_logprobs.values < 0).all()
        assert set(samples.finish_reasons) <= {FinishReason.STOP, FinishReason.LENGTH}
    prompt_ids = {name: group.samples.prompt_ids.rows()[0].tolist() for name, group in groups.items()}
    assert prompt_ids == {"a": [5, 6, 7], "b": [4, 5], "c": [6]}
    assert await rollout.measure_prompts(prompts) == [3, 2, 1]
