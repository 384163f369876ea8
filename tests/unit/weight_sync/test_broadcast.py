"""One weight update between processes over gloo: bit-equal on every side, and an error in time when a side is missing."""

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
import torch

from baton.errors import DeadlineError, ServiceUnavailableError
from processes import free_port
from ranks import Rank
from services.common.weight_sync.group import BroadcastGroup, open_store
from services.common.weight_sync.loading import Copies, DirectSink, LoaderSink
from services.common.weight_sync.plan import Part, Region, as_matrix, cut, plan_buckets
from services.common.weight_sync.transfer import BroadcastWire, Deadline, Gathering, Lane, Transfer, receive, send

HOST = "127.0.0.1"
CPU = torch.device("cpu")
BUCKET_BYTES = 256
SHAPES = [("a", (7, 9)), ("b", (3,)), ("c", (64, 64)), ("d", ()), ("e", (5, 5))]
"""`c` alone is larger than a bucket, and is cut."""
TIMEOUT_S = 1.0
MEET_S = 60.0
"""How long members may take to meet, where nobody is missing."""
SLACK_S = 40.0
"""What a loaded machine may add to a timeout."""
LARGE_BYTES = 4 << 20
LARGE = [(f"t{i}", (1024, 1024)) for i in range(30)]
"""120 MB in 30 buckets of float32: a broadcast that can be broken off half-way."""


def weights(version: int, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(version)
    return ((name, torch.randn(shape, generator=random).to(dtype)) for name, shape in SHAPES)


def regions(tensors: Iterator[tuple[str, torch.Tensor]], dtype: torch.dtype, bucket_bytes: int) -> list[Region]:
    """What a sender sends of whole tensors, cut so that each fits a bucket."""
    whole = [Region(Part.whole(name, dtype, tensor.shape), as_matrix(tensor)) for name, tensor in tensors]
    return list(cut(whole, bucket_bytes))


def lane(group: BroadcastGroup, sent: list[Region], bucket_bytes: int) -> Lane:
    return Lane(plan_buckets([region.part for region in sent], bucket_bytes), BroadcastWire(group, "gloo"), CPU)


def ones() -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, torch.ones(shape)) for name, shape in LARGE)


def send_large(group: BroadcastGroup, timeout_s: float) -> Transfer:
    sent = regions(ones(), torch.float32, LARGE_BYTES)
    return send(Gathering(lane(group, sent, LARGE_BYTES), sent, CPU), Deadline(timeout_s))


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def join(port: int, rank: int, size: int, timeout_s: float) -> BroadcastGroup:
    return BroadcastGroup.join(HOST, port, rank=rank, size=size, backend="gloo", group_id="g", timeout_s=timeout_s)


def lead(store: torch.distributed.TCPStore, size: int, timeout_s: float) -> BroadcastGroup:
    return BroadcastGroup(store, HOST, rank=0, size=size, backend="gloo", group_id="g", timeout_s=timeout_s)


def until_here(store: torch.distributed.TCPStore, *ranks: int) -> None:
    """Returns once these receivers wait for the others, however long their processes take to start."""
    here, deadline = torch.distributed.PrefixStore("g", store), time.monotonic() + MEET_S
    while not here.check([f"here/{rank}" for rank in ranks]):
        assert time.monotonic() < deadline, f"ranks {ranks} are not here"
        time.sleep(0.01)


def receive_versions(
    port: int, rank: int, size: int, dtype: torch.dtype, versions: int
) -> list[tuple[str, int, dict[str, bytes]]]:
    """A receiver's (digest, bytes, tensors) of each update."""
    group, answers = join(port, rank, size, MEET_S), []
    arriving = lane(group, regions(weights(0, dtype), dtype, BUCKET_BYTES), BUCKET_BYTES)
    for _ in range(versions):
        arrived: dict[str, bytes] = {}
        sink = LoaderSink(
            lambda pairs, into=arrived: into.update((n, as_bytes(t)) for n, t in pairs), [arriving.buckets]
        )
        transfer = receive([arriving], sink, CPU, Deadline(MEET_S))
        answers.append((transfer.digest.hexdigest(), transfer.bytes, arrived))
    return answers


def test_a_rank_that_was_there_before_cannot_take_its_own_place() -> None:
    """A process that was started again would otherwise wait for peers that are long connected to the one before it."""
    store, first = open_store(HOST), []
    receiver = threading.Thread(target=lambda: first.append(join(store.port, 1, 2, MEET_S)))
    receiver.start()
    sender = lead(store, 2, MEET_S)
    receiver.join()
    started = time.monotonic()
    with pytest.raises(ServiceUnavailableError, match=r"rank 1 was taken before.*open the group again"):
        join(store.port, 1, 2, MEET_S)
    assert time.monotonic() - started < SLACK_S
    del sender


def receive_large(port: int, rank: int, size: int, timeout_s: float, die_at: int | None) -> str:
    """A receiver of the large model that kills itself at bucket `die_at`. Returns the error that it got."""
    group, loaded = join(port, rank, size, timeout_s), []

    def load(tensors: list[tuple[str, torch.Tensor]]) -> None:
        loaded.extend(tensors)
        if len(loaded) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    started = time.monotonic()
    arriving = lane(group, regions(ones(), torch.float32, LARGE_BYTES), LARGE_BYTES)
    try:
        receive([arriving], LoaderSink(load, [arriving.buckets]), CPU, Deadline(timeout_s))
    except DeadlineError as error:
        return f"{time.monotonic() - started:.1f} s: {error}"
    return "received everything"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_two_receivers_get_every_version_bit_for_bit_and_all_three_digests_agree(dtype: torch.dtype) -> None:
    store = open_store(HOST)
    receivers = [Rank(receive_versions, store.port, rank, 3, dtype, 2) for rank in (1, 2)]
    group = lead(store, 3, MEET_S)
    held = [regions(weights(version, torch.float32), dtype, BUCKET_BYTES) for version in range(2)]
    leaving = lane(group, held[0], BUCKET_BYTES)
    sent = [send(Gathering(leaving, version, CPU), Deadline(MEET_S)) for version in held]
    for receiver in receivers:
        for version, (digest, nbytes, arrived) in enumerate(receiver.result()):
            assert arrived == {name: as_bytes(tensor) for name, tensor in weights(version, dtype)}
            assert (digest, nbytes) == (sent[version].digest.hexdigest(), sent[version].bytes)
    assert sent[0].digest.hexdigest() != sent[1].digest.hexdigest()


def test_a_missing_receiver_is_a_deadline_error_within_the_timeout_that_names_the_group() -> None:
    store = open_store(HOST)
    present = Rank(receive_large, store.port, 1, 3, TIMEOUT_S, None)
    until_here(store, 1)
    started = time.monotonic()
    with pytest.raises(
        DeadlineError, match=rf"weight group g: rank 0 of 3 did not meet the others at {HOST}:{store.port} within 1 s"
    ):
        lead(store, 3, TIMEOUT_S)
    assert time.monotonic() - started < TIMEOUT_S + SLACK_S
    done, (kind, message, _) = present.outcome(TIMEOUT_S + SLACK_S)
    assert (done, kind) == (False, "DeadlineError")
    assert "rank 1 of 3 did not meet the others" in message


def test_a_sender_that_gives_up_takes_along_those_that_wait_with_it() -> None:
    store, give_up = open_store(HOST), threading.Event()
    present = Rank(receive_large, store.port, 1, 3, MEET_S, None)
    threading.Timer(0.5, give_up.set).start()
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"rank 0 of 3 did not meet the others .*ranks \[.*2\] are missing"):
        BroadcastGroup(store, HOST, rank=0, size=3, backend="gloo", group_id="g", timeout_s=MEET_S, give_up=give_up)
    done, (kind, message, _) = present.outcome(SLACK_S)
    assert (done, kind) == (False, "DeadlineError")
    assert "another member gave up" in message
    assert time.monotonic() - started < 0.5 + SLACK_S


def test_a_missing_sender_is_a_deadline_error_that_names_its_address() -> None:
    port = free_port()
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=rf"no sender answers at {HOST}:{port}"):
        join(port, 1, 2, TIMEOUT_S)
    assert time.monotonic() - started < TIMEOUT_S + SLACK_S


def test_a_receiver_killed_in_the_middle_ends_the_sender_and_the_other_receiver_in_time() -> None:
    store, timeout_s = open_store(HOST), 10.0
    killed = Rank(receive_large, store.port, 1, 3, timeout_s, 3)
    other = Rank(receive_large, store.port, 2, 3, timeout_s, None)
    until_here(store, 1, 2)
    group = lead(store, 3, timeout_s)
    started = time.monotonic()
    with pytest.raises(
        DeadlineError, match=r"weight broadcast of 4194304 bytes did not finish .* or a member of the group died"
    ):
        send_large(group, timeout_s)
    assert time.monotonic() - started < timeout_s + SLACK_S
    assert killed.outcome(SLACK_S) == (False, ("killed", "", ""))
    assert "weight broadcast of 4194304 bytes did not finish" in other.result(timeout_s + SLACK_S)


def test_a_sender_that_stops_sending_is_a_deadline_error_for_the_receiver() -> None:
    store, timeout_s = open_store(HOST), 8.0
    receiver = Rank(receive_large, store.port, 1, 2, timeout_s, None)
    until_here(store, 1)
    group = lead(store, 2, timeout_s)
    assert "weight broadcast of 4194304 bytes did not finish within 8 s" in receiver.result(timeout_s + SLACK_S)
    assert group.rank == 0, "the group stays open until here"


def test_a_group_is_left_as_soon_as_its_last_user_is_gone() -> None:
    """Others would wait for it otherwise, and the memory of its buckets be held, until the garbage collector comes by."""
    store, left = open_store(HOST), []
    receiver = threading.Thread(target=lambda: left.append(join(store.port, 1, 2, MEET_S)))
    receiver.start()
    group = lead(store, 2, MEET_S)
    receiver.join()
    sent = regions(weights(0, torch.float32), torch.float32, BUCKET_BYTES)
    gathering = Gathering(lane(group, sent, BUCKET_BYTES), sent, CPU)
    arriving = lane(left.pop(), sent, BUCKET_BYTES)
    sink = DirectSink(Copies([arriving.buckets], sent), [arriving], CPU)
    held = [weakref.ref(thing) for thing in (group, gathering.lane, arriving, arriving.views[0][0], sink)]
    gc.disable()
    try:
        del group, gathering, arriving, sink
        assert [thing() for thing in held] == [None] * len(held)
    finally:
        gc.enable()
