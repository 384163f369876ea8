"""The server kit, in a process of its own: start, ready file, health, reflection, error mapping and drain."""

import json
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import kit_service
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.api.rollout.v1.rollout_pb2_grpc import RolloutServiceStub
from baton.local.health import is_serving
from processes import Process
from services.common.server import Server, write_ready_file

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Kit(Process):
    """`kit_service.py` on a free port."""

    def __init__(self, directory: Path) -> None:
        self.ready_file = directory / "ready.json"
        self.hold = directory / "hold"
        """While it is there, calls that are under way do not end."""
        options = ["--run-file", "unused", "--ready-file", str(self.ready_file)]
        super().__init__([sys.executable, kit_service.__file__, *options], directory / "log", self.ready_file.exists)

    @property
    def facts(self) -> dict[str, object]:
        return json.loads(self.ready_file.read_text())

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def until_said(self, word: str) -> None:
        deadline = time.monotonic() + 30
        while word not in self.output():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.01)

    def exit_code(self) -> int:
        return self.popen.wait(30)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    process = Kit(tmp_path)
    try:
        yield process.start()
    finally:
        process.kill()


@pytest.fixture
def channel(kit: Kit) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(kit.facts["address"]) as channel:
        yield channel


def held_call(kit: Kit, channel: grpc.Channel) -> grpc.Future:
    """A call that the service has begun, and that ends once `hold` is removed."""
    kit.hold.touch()
    call = RolloutServiceStub(channel).UpdateWeights.future(pb.UpdateWeightsRequest(), timeout=30)
    kit.until_said("begun")
    return call


@pytest.mark.slow
def test_calls_that_a_busy_service_has_not_begun_wait_as_long_as_their_deadlines_let_them(
    kit: Kit, channel: grpc.Channel
) -> None:
    """gRPC by itself would cancel them after 30 s."""
    rollout = RolloutServiceStub(channel)
    busy = rollout.CommitWeights.future(pb.CommitWeightsRequest(timeout_s=32), timeout=120)
    waiting = [rollout.UpdateWeights.future(pb.UpdateWeightsRequest(), timeout=120) for _ in range(50)]
    assert busy.result() == pb.CommitWeightsResponse()
    assert [call.result().bytes for call in waiting] == [7] * 50


def test_the_ready_file_names_the_bound_port_and_the_process(kit: Kit, channel: grpc.Channel) -> None:
    assert kit.facts["pid"] == kit.popen.pid
    host, _, port = kit.facts["address"].rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    grpc.channel_ready_future(channel).result(timeout=30)


def test_health_is_serving_for_the_server_and_for_its_service(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", kit_service.SERVICE):
        assert health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30).status == SERVING


def test_reflection_lists_the_service_health_and_itself(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=30)
    listed = {service.name for service in answer.list_services_response.service}
    assert listed == {kit_service.SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


def test_the_server_maps_errors_and_logs_defects(kit: Kit, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        RolloutServiceStub(channel).GetStatus(pb.GetStatusRequest(), timeout=30)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert dict(caught.value.trailing_metadata())["baton-error"] == "ServiceFaultError"
    assert "ZeroDivisionError: a defect" in kit.output()


def test_sigusr1_has_a_service_write_what_it_is_doing_and_go_on(kit: Kit, channel: grpc.Channel) -> None:
    busy = RolloutServiceStub(channel).CommitWeights.future(pb.CommitWeightsRequest(timeout_s=3), timeout=30)
    kit.until_said("busy")
    kit.popen.send_signal(signal.SIGUSR1)
    assert busy.result() == pb.CommitWeightsResponse()
    assert "in CommitWeights" in kit.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_call_in_flight_finish_and_ends_the_process_cleanly(
    kit: Kit, channel: grpc.Channel, number: int
) -> None:
    call = held_call(kit, channel)
    kit.popen.send_signal(number)
    kit.until_said("on_stop")
    kit.hold.unlink()
    assert call.result(timeout=30).bytes == 7
    assert kit.exit_code() == 0


def test_a_call_that_is_silent_through_many_keepalives_is_not_cut_off(kit: Kit) -> None:
    """gRPC's own limit is three pings without data: 90 s of silence at the clients' 30 s between two."""
    options = [("grpc.keepalive_time_ms", 1000), ("grpc.http2.max_pings_without_data", 0)]
    with grpc.insecure_channel(kit.facts["address"], options=options) as channel:
        call = RolloutServiceStub(channel).UpdateWeights.future(pb.UpdateWeightsRequest(timeout_s=6.0), timeout=30)
        assert call.result().bytes == 7


def test_health_turns_not_serving_before_the_calls_in_flight_have_finished(kit: Kit, channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service=kit_service.SERVICE), timeout=30)
    assert next(watch).status == SERVING
    call = held_call(kit, channel)
    kit.terminate()
    assert next(watch).status == NOT_SERVING
    assert not call.done()
    kit.hold.unlink()
    assert call.result(timeout=30).bytes == 7


def test_no_call_is_taken_after_the_signal(kit: Kit, channel: grpc.Channel) -> None:
    first = held_call(kit, channel)
    kit.terminate()
    kit.until_said("on_stop")
    time.sleep(0.3)  # it is the last that happens before
    with pytest.raises(grpc.RpcError) as caught:
        RolloutServiceStub(channel).UpdateWeights(pb.UpdateWeightsRequest(timeout_s=0), timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    kit.hold.unlink()
    assert first.result(timeout=30).bytes == 7


async def test_a_taken_port_ends_the_start_with_the_port_and_the_fix() -> None:
    first = Server([kit_service.SERVICE], "127.0.0.1:0")
    port = first.address.rpartition(":")[2]
    try:
        with pytest.raises(
            SystemExit, match=rf"cannot listen on 127\.0\.0\.1:{port}: port {port} is taken.*set another port"
        ):
            Server([kit_service.SERVICE], first.address)
    finally:
        await first.grpc.stop(None)


async def test_a_socket_of_this_machine_is_an_address_too_and_is_taken_once() -> None:
    listen = f"unix-abstract:baton-test-{uuid.uuid4().hex}"
    first = Server([], listen)
    assert first.address == listen
    await first.grpc.start()
    assert await is_serving(listen)
    with pytest.raises(SystemExit, match=f"cannot listen on {listen}: it is taken"):
        Server([], listen)
    await first.grpc.stop(0)


async def test_an_address_of_another_machine_ends_the_start_with_its_name() -> None:
    with pytest.raises(SystemExit, match=r"203\.0\.113\.1 is not an address of this machine"):
        Server([kit_service.SERVICE], "203.0.113.1:0")


def test_a_reader_of_the_ready_file_sees_all_of_it_or_nothing(tmp_path: Path) -> None:
    path, done, torn = tmp_path / "ready.json", threading.Event(), []

    def read() -> None:
        while not done.is_set():
            try:
                torn.append(len(json.loads(path.read_text())["padding"]) != 100_000)
            except FileNotFoundError:
                continue
            except ValueError:
                torn.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    written = 0
    while written < 200 or not torn:  # the reader may come late
        write_ready_file(path, {"pid": written, "padding": "x" * 100_000})
        written += 1
    done.set()
    reader.join(10)
    assert not any(torn)
