"""Members that wait for others leave soon after the first that knows better, though nothing on the link tells them: so it is
on NCCL, of which gloo groups whose broadcast never begins stand in here."""

import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import distributed as dist

from baton.api.common.v1 import weights_pb2
from baton.errors import DeadlineError
from processes import free_port
from ranks import Rank
from services.common.weight_sync import receiving
from services.common.weight_sync.departures import LOOK_S
from services.common.weight_sync.group import BroadcastGroup, until
from services.common.weight_sync.plan import Part, describe
from services.common.weight_sync.transfer import leaving_if_broken

HOST = "127.0.0.1"
LONG_S = 60.0
"""A publication's deadline, which nobody is to wait for."""
SOON_S = 2 * LOOK_S + 20.0
"""A look of the one that waits, and what a busy machine adds: a third of what it would wait for nothing."""


def is_never_done() -> bool:
    return False


def member(port: int, rank: int, size: int) -> BroadcastGroup:
    return BroadcastGroup.join(HOST, port, rank=rank, size=size, backend="gloo", group_id="g", timeout_s=LONG_S)


def group_of(size: int) -> list[BroadcastGroup]:
    """All members, of which each lives in this process."""
    port, found = free_port(), {}
    store = dist.TCPStore(HOST, port, is_master=True, wait_for_workers=False)

    def join(rank: int) -> None:
        found[rank] = member(port, rank, size)

    joining = [threading.Thread(target=join, args=(rank,)) for rank in range(1, size)]
    for thread in joining:
        thread.start()
    found[0] = BroadcastGroup(store, HOST, rank=0, size=size, backend="gloo", group_id="g", timeout_s=LONG_S)
    for thread in joining:
        thread.join()
    return [found[rank] for rank in range(size)]


def error_of(wait: Callable[[], None]) -> tuple[str, float]:
    """What it ends with, and after how many seconds."""
    begun = time.monotonic()
    with pytest.raises(DeadlineError) as caught:
        wait()
    return str(caught.value), time.monotonic() - begun


def waiting(group: BroadcastGroup, into: list[tuple[str, float]]) -> threading.Thread:
    deadline = time.monotonic() + LONG_S
    thread = threading.Thread(target=lambda: into.append(error_of(lambda: until(is_never_done, [group], deadline, None))))
    thread.start()
    return thread


def test_the_one_whose_time_is_over_takes_all_that_wait_with_it() -> None:
    groups, ends = group_of(3), []
    others = [waiting(group, ends) for group in groups[:2]]
    told, _ = error_of(lambda: until(is_never_done, [groups[2]], time.monotonic() + 1.5, None))
    assert "when its time is over" in told
    for other in others:
        other.join(LONG_S)
    assert len(ends) == 2
    for told, seconds in ends:
        assert "another member left: rank 2: its time is over" in told
        assert seconds < 1.5 + SOON_S


def test_a_sender_that_is_told_to_give_up_takes_its_receivers_with_it() -> None:
    groups, ends, give_up = group_of(2), [], threading.Event()
    receiver = waiting(groups[1], ends)
    threading.Timer(0.5, give_up.set).start()
    told, seconds = error_of(lambda: until(is_never_done, [groups[0]], time.monotonic() + LONG_S, give_up))
    assert "when it was given up" in told
    assert seconds < 0.5 + SOON_S
    receiver.join(LONG_S)
    assert "another member left: rank 0: it was given up" in ends[0][0]
    assert ends[0][1] < 0.5 + SOON_S


def test_a_member_in_which_something_breaks_says_what_and_the_others_wait_no_longer() -> None:
    groups, ends = group_of(2), []
    sender = waiting(groups[0], ends)
    with pytest.raises(ValueError, match="no room"), leaving_if_broken([groups[1]]):
        raise ValueError("no room for the weights")
    sender.join(LONG_S)
    assert "another member left: rank 1: ValueError: no room for the weights" in ends[0][0]
    assert ends[0][1] < SOON_S


def test_a_receiver_that_misses_one_sender_does_not_let_the_other_one_wait() -> None:
    group, ends = weights_pb2.WeightGroup(group_id="g", backend="gloo", receivers=1), []
    for _ in range(2):
        sender = group.senders.add(store_host=HOST, store_port=free_port(), members=[1], bucket_bytes=64)
        describe([Part.whole("w", torch.float32, (2, 2))], sender)
    store = dist.TCPStore(HOST, group.senders[0].store_port, is_master=True, wait_for_workers=False)

    def send() -> None:
        there = BroadcastGroup(store, HOST, rank=0, size=2, backend="gloo", group_id="g", timeout_s=LONG_S)
        ends.append(error_of(lambda: until(is_never_done, [there], time.monotonic() + LONG_S, None)))

    present = threading.Thread(target=send)
    present.start()
    told, _ = error_of(lambda: receiving.join(group, 1, torch.device("cpu"), 2.0))
    assert f"no sender answers at {HOST}:{group.senders[1].store_port}" in told
    present.join(LONG_S)
    assert "another member left: rank 1: DeadlineError: weight group g: no sender answers" in ends[0][0]
    assert ends[0][1] < 2.0 + SOON_S


def send_nothing(port: int) -> None:
    """A sender that joins, and waits to be killed."""
    store = dist.TCPStore(HOST, port, is_master=True, wait_for_workers=False)
    group = BroadcastGroup(store, HOST, rank=0, size=2, backend="gloo", group_id="g", timeout_s=LONG_S)
    time.sleep(LONG_S)
    assert group


def test_a_sender_that_is_killed_takes_its_store_with_it_which_its_receivers_notice() -> None:
    port = free_port()
    sender = Rank(send_nothing, port)
    receiver, ends = member(port, 1, 2), []
    thread = waiting(receiver, ends)
    time.sleep(1.0)
    sender.kill()
    thread.join(LONG_S)
    assert "another member left: the sender is gone" in ends[0][0]
    assert ends[0][1] < 1.0 + SOON_S


def test_a_broadcast_on_the_cpu_ends_when_its_process_gives_up_and_when_another_member_has_left() -> None:
    sender, receiver, third = group_of(3)
    give_up = threading.Event()
    receiver.bound(time.monotonic() + LONG_S, give_up)
    third.bound(time.monotonic() + LONG_S)
    threading.Timer(0.5, give_up.set).start()
    ends: list[tuple[str, float]] = []
    broadcasts = [group.start(torch.zeros(1 << 20)) for group in (receiver, third)]  # the sender never begins
    thread = threading.Thread(target=lambda: ends.append(error_of(broadcasts[1].wait)))
    thread.start()
    told, seconds = error_of(broadcasts[0].wait)
    assert "when it was given up" in told
    assert seconds < 0.5 + SOON_S
    thread.join(LONG_S)
    assert "another member left: rank 1: it was given up" in ends[0][0]
    assert ends[0][1] < 0.5 + SOON_S
    assert sender.rank == 0, "the group stays open until here"
