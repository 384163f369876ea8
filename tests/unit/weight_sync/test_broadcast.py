"""One weight update between processes over gloo: bit-equal on every side, and an error in time when a side is missing."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from baton.errors import DeadlineError, ServiceUnavailableError
from processes import free_port
from ranks import Rank
from services.common.weight_sync.group import BroadcastGroup, open_store
from services.common.weight_sync.plan import Bucket, describe, plan_buckets
from services.common.weight_sync.transfer import receive, send

HOST = "127.0.0.1"
CPU = torch.device("cpu")
BUCKET_BYTES = 256
SHAPES = [("a", (7, 9)), ("b", (3,)), ("c", (64, 64)), ("d", ()), ("e", (5, 5))]
"""`c` alone is larger than a bucket."""
TIMEOUT_S = 1.0
SLACK_S = 8.0
"""What a loaded machine may add to a timeout."""
LARGE = [(f"t{i}", (1024, 1024)) for i in range(30)]
"""120 MB in 30 buckets of float32: a broadcast that can be broken off half-way."""


def buckets_of(shapes: list[tuple[str, tuple[int, ...]]], dtype: torch.dtype) -> list[Bucket]:
    return plan_buckets(describe(iter(shapes), dtype), BUCKET_BYTES)


def weights(version: int, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(version)
    return ((name, torch.randn(shape, generator=random).to(dtype)) for name, shape in SHAPES)


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def join(port: int, rank: int, size: int, timeout_s: float) -> BroadcastGroup:
    return BroadcastGroup.join(HOST, port, rank=rank, size=size, backend="gloo", group_id="g", timeout_s=timeout_s)


def lead(store: torch.distributed.TCPStore, size: int, timeout_s: float) -> BroadcastGroup:
    return BroadcastGroup(store, HOST, rank=0, size=size, backend="gloo", group_id="g", timeout_s=timeout_s)


def receive_versions(
    port: int, rank: int, size: int, dtype: torch.dtype, versions: int
) -> list[tuple[str, int, dict[str, bytes]]]:
    """A receiver's (digest, bytes, tensors) of each update."""
    group, answers = join(port, rank, size, 30.0), []
    for _ in range(versions):
        arrived: dict[str, bytes] = {}
        transfer = receive(
            group,
            buckets_of(SHAPES, dtype),
            lambda pairs, into=arrived: into.update((n, as_bytes(t)) for n, t in pairs),
            CPU,
        )
        answers.append((transfer.digest.hexdigest(), transfer.bytes, arrived))
    return answers


def test_a_rank_that_was_there_before_cannot_take_its_own_place() -> None:
    """A process that was started again would otherwise wait for peers that are long connected to the one before it."""
    store, first = open_store(HOST), []
    receiver = threading.Thread(target=lambda: first.append(join(store.port, 1, 2, 30.0)))
    receiver.start()
    sender = lead(store, 2, 30.0)
    receiver.join()
    started = time.monotonic()
    with pytest.raises(ServiceUnavailableError, match=r"rank 1 was taken before.*open the group again"):
        join(store.port, 1, 2, 30.0)
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
    try:
        receive(group, buckets_of(LARGE, torch.float32), load, CPU)
    except DeadlineError as error:
        return f"{time.monotonic() - started:.1f} s: {error}"
    return "received everything"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_two_receivers_get_every_version_bit_for_bit_and_all_three_digests_agree(dtype: torch.dtype) -> None:
    store = open_store(HOST)
    receivers = [Rank(receive_versions, store.port, rank, 3, dtype, 2) for rank in (1, 2)]
    group = lead(store, 3, 30.0)
    sent = [send(group, buckets_of(SHAPES, dtype), weights(version, torch.float32), CPU) for version in range(2)]
    for receiver in receivers:
        for version, (digest, nbytes, arrived) in enumerate(receiver.result()):
            assert arrived == {name: as_bytes(tensor) for name, tensor in weights(version, dtype)}
            assert (digest, nbytes) == (sent[version].digest.hexdigest(), sent[version].bytes)
    assert sent[0].digest.hexdigest() != sent[1].digest.hexdigest()


def test_a_missing_receiver_is_a_deadline_error_within_the_timeout_that_names_the_group() -> None:
    store = open_store(HOST)
    present = Rank(receive_large, store.port, 1, 3, TIMEOUT_S, None)
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
    present = Rank(receive_large, store.port, 1, 3, 30.0, None)
    threading.Timer(0.5, give_up.set).start()
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"rank 0 of 3 did not meet the others .*ranks \[.*2\] are missing"):
        BroadcastGroup(store, HOST, rank=0, size=3, backend="gloo", group_id="g", timeout_s=30.0, give_up=give_up)
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
    store, timeout_s = open_store(HOST), 5.0
    killed = Rank(receive_large, store.port, 1, 3, timeout_s, 3)
    other = Rank(receive_large, store.port, 2, 3, timeout_s, None)
    group = lead(store, 3, timeout_s)
    started = time.monotonic()
    with pytest.raises(
        DeadlineError, match=r"weight broadcast of 4194304 bytes did not finish .* or a member of the group died"
    ):
        send(group, buckets_of(LARGE, torch.float32), ((name, torch.ones(shape)) for name, shape in LARGE), CPU)
    assert time.monotonic() - started < timeout_s + SLACK_S
    assert killed.outcome(5.0) == (False, ("killed", "", ""))
    assert "weight broadcast of 4194304 bytes did not finish" in other.result(timeout_s + SLACK_S)


def test_a_sender_that_stops_sending_is_a_deadline_error_for_the_receiver() -> None:
    store, timeout_s = open_store(HOST), 3.0
    receiver = Rank(receive_large, store.port, 1, 2, timeout_s, None)
    group = lead(store, 2, timeout_s)
    assert "weight broadcast of 4194304 bytes did not finish within 3 s" in receiver.result(timeout_s + SLACK_S)
    assert group.rank == 0, "the group stays open until here"


def test_tensors_in_another_order_than_the_plans_are_refused_by_name() -> None:
    store = open_store(HOST)
    group = lead(store, 1, TIMEOUT_S)
    swapped = [("b", torch.ones(3)), ("a", torch.ones(7, 9))]
    with pytest.raises(ValueError, match="the plan wants a next, but the model gave b"):
        send(group, buckets_of(SHAPES, torch.float32), iter(swapped), CPU)
