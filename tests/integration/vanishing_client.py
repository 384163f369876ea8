"""`python vanishing_client.py ADDRESS` or `... URL MODEL`: asks for a long response and waits, until the test kills it."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

from baton.clients import RolloutClient
from baton.clients.rollout import Prompt, SamplingParams

LONG = SamplingParams(n=4, max_new_tokens=16000, ignore_eos=True)


async def killed_while_it_waits(rollout: RolloutClient, *arguments: str) -> None:
    """Starts this file, has it killed with SIGKILL when its responses are under way, and returns when none is any
    more. They must not end by themselves before."""
    client = subprocess.Popen([sys.executable, Path(__file__), *arguments])
    try:
        async with asyncio.timeout(120):
            while not (await rollout.get_status()).running_requests:
                assert client.poll() is None, "the client ended by itself"
                await asyncio.sleep(0.02)
    finally:
        client.send_signal(signal.SIGKILL)
        client.wait(60)
    async with asyncio.timeout(60):
        while (await rollout.get_status()).running_requests:
            await asyncio.sleep(0.02)


async def by_grpc(address: str) -> None:
    """With Baton's client."""
    async with RolloutClient(address) as rollout:
        async for _ in rollout.generate([Prompt("left", token_ids=[5])], sampling=LONG):
            pass


def by_http(url: str, model: str) -> None:
    """With OpenAI's client, as a stream."""
    import openai

    client = openai.OpenAI(base_url=url, api_key="none")
    options = {"max_tokens": LONG.max_new_tokens, "extra_body": {"ignore_eos": True}}
    for _ in client.completions.create(model=model, prompt="w3", n=LONG.n, stream=True, **options):
        pass


if __name__ == "__main__":
    if len(sys.argv) == 2:
        asyncio.run(by_grpc(sys.argv[1]))
    by_http(*sys.argv[1:])
