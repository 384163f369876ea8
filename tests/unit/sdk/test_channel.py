"""What clients have to themselves, over a real grpc.aio server."""

import grpc

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.api.rollout.v1.rollout_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server
from baton.clients import RolloutClient


class Listening(RolloutServiceServicer):
    """Keeps the other end of each call's connection."""

    def __init__(self) -> None:
        self.peers: list[str] = []

    async def GetStatus(self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext) -> pb.GetStatusResponse:
        self.peers.append(context.peer())
        return pb.GetStatusResponse()


async def test_clients_of_one_process_have_a_connection_each_so_that_bulk_streams_do_not_share_one() -> None:
    servicer, server = Listening(), grpc.aio.server()
    add_RolloutServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with RolloutClient(address) as one, RolloutClient(address) as other:
            for client in (one, other, one):
                await client.get_status()
    finally:
        await server.stop(None)
    first, second, again = servicer.peers
    assert first == again != second
