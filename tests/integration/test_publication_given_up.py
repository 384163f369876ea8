"""A publication whose caller leaves: the trainer is free for the next one, and does not wait for receivers that are dead."""

import asyncio
import time
from pathlib import Path

import pytest
from training import trainer, write_run_file

from baton.clients import TrainerClient
from models import make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("ranks", [1, 2])
async def test_a_caller_that_leaves_takes_its_publication_with_it_on_every_rank(ranks: int, tmp_path: Path) -> None:
    run_file = write_run_file(tmp_path, make_model(tmp_path / "model", layers=2))
    with trainer(run_file, tmp_path, tensor=ranks) as process:
        async with TrainerClient(process.address, timeout_s=120) as client:
            group = await client.open_weight_group(1)
            publishing = asyncio.create_task(client.publish_weights(group.group_id, 1, timeout_s=120))
            await asyncio.sleep(1.0)
            publishing.cancel()
            started = time.monotonic()
            await client.open_weight_group(1)  # its turn comes when the trainer waits for no receiver any more
            assert time.monotonic() - started < 45
