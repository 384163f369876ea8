"""The fakes' weight broadcast: the trainer listens, every receiver connects and reads to the end. Small, but a real wire."""

import asyncio
import hashlib

from baton.api.common.v1 import weights_pb2


def digest(payload: bytes) -> str:
    """The digest that both sides compute."""
    return hashlib.sha256(payload).hexdigest()


class Sender:
    """One open group: waits for its receivers, then sends each of them the payload."""

    def __init__(self, group: weights_pb2.WeightGroup, listener: asyncio.Server, arrived: asyncio.Queue) -> None:
        self.group = group
        self._listener = listener
        self._arrived = arrived

    @classmethod
    async def open(cls, group_id: str, receivers: int) -> "Sender":
        """Listens on a free port of 127.0.0.1, which the group's message names."""
        arrived: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        listener = await asyncio.start_server(lambda reader, writer: arrived.put_nowait(writer), "127.0.0.1", 0)
        sender = weights_pb2.WeightSender(store_host="127.0.0.1", store_port=listener.sockets[0].getsockname()[1])
        group = weights_pb2.WeightGroup(group_id=group_id, backend="gloo", receivers=receivers, senders=[sender])
        return cls(group, listener, arrived)

    async def send(self, payload: bytes, timeout_s: float) -> None:
        """Raises TimeoutError if not all receivers came."""
        async with asyncio.timeout(timeout_s):
            for _ in range(self.group.receivers):
                writer = await self._arrived.get()
                writer.write(payload)
                writer.close()
                await writer.wait_closed()

    def close(self) -> None:
        """Stops listening."""
        self._listener.close()


async def receive(group: weights_pb2.WeightGroup, timeout_s: float) -> bytes:
    """What the group's sender sends."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(group.senders[0].store_host, group.senders[0].store_port)
        payload = await reader.read(-1)
        writer.close()
        return payload
