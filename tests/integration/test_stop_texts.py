"""The run file's stop texts in real vLLM: ordinary ones, and one that is a special token."""

from pathlib import Path

import pytest
from rollout_side import collect, vllm_service

from baton.clients import RolloutClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.samples import FinishReason
from models import make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def test_every_text_of_the_stop_token_list_ends_responses(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", layers=1)
    service = vllm_service(tmp_path, model, seq_length=64, ignore_eos=True, stop_token_list="w7;</s>")
    try:
        service.start(timeout_s=240)
        async with RolloutClient(service.address) as rollout:
            sampling = SamplingParams(n=256, max_new_tokens=48, temperature=2.0, seed=1)
            group = (await collect(rollout.generate([Prompt("g", token_ids=[5, 6])], sampling=sampling)))["g"]
    finally:
        service.kill()
    rows = group.samples.response_ids.rows()
    stopped = [row for row, why in zip(rows, group.samples.finish_reasons, strict=True) if why == FinishReason.STOP]
    last = {int(row[-1]) for row in stopped}
    assert 2 in last, "by the special token"
    assert last - {2}, "by the ordinary text"
    assert all(2 not in row[:-1] for row in rows)
    assert not any("w7" in text for text in group.texts)
