"""A call of the loop service that its caller gave up counts once, like every other, when it is sent again."""

import asyncio
from types import SimpleNamespace

import pytest
from objective_samples import samples_of

from baton.api.trainer.v1 import loop_pb2 as pb
from services.trainer.loop_servicer import LoopServicer


class Ranks:
    """Remembers the commands, each of which ends when it is let go, like a thread's, whether it is waited for or not."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.go = asyncio.Event()

    async def execute(self, name: str, request: bytes) -> list[bytes]:
        self.commands.append(name)
        await self.go.wait()
        answers = {
            "OptimStep": pb.OptimStepResponse(grad_norm=2),
            "ForwardBackward": pb.ForwardBackwardResponse(metrics={"loss": 2}),
        }
        return [answers[name].SerializeToString()]


async def forward_backward(servicer: LoopServicer) -> float:
    async def requests():
        yield pb.ForwardBackwardRequest(request_id="a", samples=samples_of().to_proto())

    answers = [answer async for answer in servicer.ForwardBackward(requests(), None)]
    return answers[0].metrics["loss"]


async def optim_step(servicer: LoopServicer) -> float:
    return (await servicer.OptimStep(pb.OptimStepRequest(request_id="b"), None)).grad_norm


@pytest.mark.parametrize("call", [forward_backward, optim_step])
async def test_what_was_given_up_while_it_was_carried_out_is_not_done_again(call) -> None:
    ranks = Ranks()
    servicer = LoopServicer(SimpleNamespace(engine=lambda role: SimpleNamespace(head="logprobs")), ranks)
    given_up = asyncio.create_task(call(servicer))
    while not ranks.commands:
        await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    again = asyncio.create_task(call(servicer))
    for _ in range(10):
        await asyncio.sleep(0)
    ranks.go.set()
    assert await asyncio.wait_for(again, 10) == 2.0
    assert len(ranks.commands) == 1
