"""Run by test_weight_sync_on_cuda.py, or by hand: members of a weight group that die between meeting and NCCL's connecting
them, for whom NCCL itself would wait without a limit. Prints JSON: what the one that is left is told, and after how many
seconds; then, on two GPUs, whether the process that was left can be in a group again."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import torch
from torch import distributed as dist

from baton.api.common.v1 import weights_pb2
from baton.errors import DeadlineError
from services.common.weight_sync.departures import call_off
from services.common.weight_sync.group import BroadcastGroup, open_store

HOST = "127.0.0.1"
AFTER_S = 2.0
"""When something is done about the death."""


def meet_and_die(rank: int, port: int) -> None:
    """Is there as this rank of the group, and gone."""
    store = dist.TCPStore(HOST, port, is_master=rank == 0, wait_for_workers=False)
    dist.PrefixStore("g", store).add(f"here/{rank}", 1)
    while not dist.PrefixStore("g", store).check([f"here/{1 - rank}"]):
        time.sleep(0.01)
    time.sleep(0.5)  # in which the other one sees that all are here
    os.kill(os.getpid(), signal.SIGKILL)


def told(join: Callable[[], BroadcastGroup]) -> dict:
    """How it ends."""
    begun = time.monotonic()
    try:
        join()
    except DeadlineError as error:
        return {"told": str(error), "seconds": time.monotonic() - begun}
    return {"told": "", "seconds": time.monotonic() - begun}


def as_sender(timeout_s: float, then: Callable[[int, threading.Event], None]) -> dict:
    """A sender whose receiver dies; `then` is called AFTER_S later with the store's port and what has the sender give up."""
    store, give_up = open_store(HOST), threading.Event()
    dying = multiprocessing.get_context("spawn").Process(target=meet_and_die, args=(1, store.port))
    dying.start()
    timer = threading.Timer(AFTER_S, then, (store.port, give_up))

    def join() -> BroadcastGroup:
        dist.PrefixStore("g", store).wait(["here/1"])
        timer.start()
        return BroadcastGroup(
            store, HOST, rank=0, size=2, backend="nccl", group_id="g", timeout_s=timeout_s, give_up=give_up
        )  # fmt: skip

    return told(join)


def calling_off(port: int, give_up: threading.Event) -> None:
    """What the publisher does."""
    group = weights_pb2.WeightGroup(group_id="g")
    group.senders.add(store_host=HOST, store_port=port)
    call_off(group, "a receiver is gone")


def as_receiver() -> dict:
    """A receiver whose sender dies."""
    port = open_store(HOST).port  # free again at once
    dying = multiprocessing.get_context("spawn").Process(target=meet_and_die, args=(0, port))
    dying.start()
    return told(
        lambda: BroadcastGroup.join(HOST, port, rank=1, size=2, backend="nccl", group_id="g", timeout_s=60.0)
    )  # fmt: skip


def receive_one(port: int) -> None:
    """The other member of a group in which nobody dies."""
    torch.cuda.set_device(1)
    group = BroadcastGroup.join(HOST, port, rank=1, size=2, backend="nccl", group_id="g", timeout_s=60.0)
    tensor = torch.zeros(1 << 20, device="cuda")
    group.start(tensor).wait()
    assert tensor.sum().item() == 1 << 20


def send_one() -> bool:
    store = open_store(HOST)
    receiver = multiprocessing.get_context("spawn").Process(target=receive_one, args=(store.port,))
    receiver.start()
    group = BroadcastGroup(store, HOST, rank=0, size=2, backend="nccl", group_id="g", timeout_s=60.0)
    group.start(torch.ones(1 << 20, device="cuda")).wait()
    torch.cuda.synchronize()
    receiver.join(60)
    return receiver.exitcode == 0


if __name__ == "__main__":
    torch.cuda.set_device(0)
    ends = {
        "were being connected when its time is over": lambda: as_sender(4.0, lambda port, give_up: None),
        "were being connected when it was given up": lambda: as_sender(60.0, lambda port, give_up: give_up.set()),
        "were being connected when another member left: a receiver is gone": lambda: as_sender(60.0, calling_off),
        "could not be connected": as_receiver,
    }
    for end, outcome in ends.items():
        print(json.dumps({"end": end} | outcome()), flush=True)
    if torch.cuda.device_count() > 1:
        print(json.dumps({"again": send_one()}), flush=True)
    sys.exit(0)
