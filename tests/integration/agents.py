"""What tests of agents share: OpenAI clients that sample into a group, or into none."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import openai

from baton.clients import RolloutRecordingClient

CHAT = [{"role": "user", "content": "w3 w4 w5"}]


class Agent:
    """One client."""

    def __init__(self, client: openai.AsyncOpenAI, model: str) -> None:
        self.client, self.model = client, model

    async def chat(self, messages=CHAT, **options):
        return await self.client.chat.completions.create(model=self.model, messages=messages, **options)

    async def complete(self, prompt, **options):
        return await self.client.completions.create(model=self.model, prompt=prompt, **options)


@asynccontextmanager
async def agents(recording: RolloutRecordingClient, model: str) -> AsyncIterator[Callable[..., Awaitable[Agent]]]:
    """Gives what makes them, of a group and headers; they are closed at the end."""
    async with AsyncExitStack() as clients:

        async def make(group: str = "", **headers: str) -> Agent:
            url = await recording.base_url(group)
            client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, default_headers=headers)
            return Agent(await clients.enter_async_context(client), model)

        yield make
