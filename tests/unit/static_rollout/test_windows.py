"""What comes in one request is one window: ranked as a whole, then cut into batches."""

import asyncio
import json
from dataclasses import asdict

import numpy as np
import pytest

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.config.policy import PolicyConfig
from baton.samples import FinishReason
from services.rollout.service import Replica
from services.static_rollout.engine import StaticEngine
from services.static_rollout.rows import Response

pytestmark = pytest.mark.slow  # importing Megatron takes seconds


class Ranks:
    """Answers every row with one token, and keeps the lengths of each batch's prompts."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    async def execute(self, name: str, request: bytes) -> list[bytes]:
        rows = json.loads(request)
        self.batches.append([len(row["prompt"]) for row in rows])
        return [json.dumps([asdict(Response([1], [0.0], [0.0], [0.0], FinishReason.LENGTH)) for _ in rows]).encode()]


class Words:
    """A tokenizer, as far as the engine asks it."""

    def decode(self, ids: list[int], **_: object) -> str:
        return " ".join(map(str, ids))


@pytest.mark.parametrize(
    ("ranking", "batches"), [(True, [[9, 7], [5, 4], [4, 1]]), (False, [[4, 9], [1, 4], [7, 5]])]
)  # fmt: skip
async def test_a_request_is_ranked_as_a_whole_and_cut_into_batches(ranking: bool, batches: list[list[int]]) -> None:
    config = PolicyConfig(generator="megatron", max_num_seqs=2, max_new_tokens=1, batch_generation={"ranking": ranking})
    ranks = Ranks()
    engine = StaticEngine(config, ranks, Words(), 100, 0)
    prompts = [
        pb.Prompt(group_id=f"g{i}", token_ids=np.full(size, 5, "<i4").tobytes())
        for i, size in enumerate([4, 9, 1, 4, 7, 5])
    ]
    running = asyncio.create_task(engine.run())
    answered = [one async for one in Replica(engine, "m", 100).generate(pb.GenerateRequest(prompts=prompts))]
    running.cancel()
    assert len(answered) == 6
    assert ranks.batches == batches


@pytest.mark.parametrize(("key", "lengths"), [("tokens", [3, 1]), ("words", [2, 1])])
def test_prompts_are_measured_as_length_key_says(key: str, lengths: list[int]) -> None:

    class Pairs(Words):
        """Two tokens make a word."""

        def decode(self, ids: list[int], **_: object) -> str:
            return super().decode(ids[::2])

    config = PolicyConfig(generator="megatron", batch_generation={"ranking": True, "length_key": key})
    replica = Replica(StaticEngine(config, Ranks(), Pairs(), 100, 0), "m", 100)
    prompts = [pb.Prompt(token_ids=np.asarray(ids, "<i4").tobytes()) for ids in ([7, 7, 7], [7])]
    assert replica.measure(prompts) == lengths
