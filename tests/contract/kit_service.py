"""A service on the server kit for `test_server.py`: UpdateWeights says "begun", then takes `timeout_s` seconds, and
as long as there is a file `hold` beside the ready file. CommitWeights keeps the whole service busy for `timeout_s`."""

import asyncio
import time
from pathlib import Path

import grpc

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.api.rollout.v1.rollout_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server
from services.common.server import Server, configure_logging, service_arguments

SERVICE = "baton.api.rollout.v1.RolloutService"


class Slow(RolloutServiceServicer):
    def __init__(self, hold: Path) -> None:
        self.hold = hold

    async def UpdateWeights(
        self, request: pb.UpdateWeightsRequest, context: grpc.aio.ServicerContext
    ) -> pb.UpdateWeightsResponse:
        print("begun", flush=True)
        await asyncio.sleep(request.timeout_s)
        while self.hold.exists():
            await asyncio.sleep(0.01)
        return pb.UpdateWeightsResponse(bytes=7)

    async def CommitWeights(
        self, request: pb.CommitWeightsRequest, context: grpc.aio.ServicerContext
    ) -> pb.CommitWeightsResponse:
        print("busy", flush=True)
        time.sleep(request.timeout_s)
        return pb.CommitWeightsResponse()

    async def GetStatus(self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext) -> pb.GetStatusResponse:
        raise ZeroDivisionError("a defect")


async def serve(listen: str, ready_file: Path) -> None:
    server = Server([SERVICE], listen)
    add_RolloutServiceServicer_to_server(Slow(ready_file.with_name("hold")), server.grpc)

    async def on_stop() -> None:
        print("on_stop", flush=True)

    await server.run(ready_file, on_stop)


if __name__ == "__main__":
    options = service_arguments("kit").parse_args()
    configure_logging("kit")
    asyncio.run(serve(options.listen, options.ready_file))
