"""The broadcast group between one sender and its receivers: a process group beside whatever else each side runs."""

import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from baton.errors import DeadlineError, ServiceUnavailableError
from services.common.weight_sync.departures import LOOK_S, LookOut, tell, told

MEET_S = 60.0
"""How long members wait for each other: all of them are told at once, so who is not there by then will not come."""

NCCL_SLACK = timedelta(seconds=60)
"""NCCL's watchdog ends the whole process at its own timeout; `settle` is there before it."""

_SLICE = timedelta(seconds=0.2)
"""How long a broadcast on the CPU is waited for before it is looked whether somebody has left."""


def open_store(host: str) -> dist.TCPStore:
    """Starts a rendezvous store on a free port of `host`; does not wait for anybody."""
    return dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)


def _own_address(peer_host: str, peer_port: int) -> str:
    """The address of this machine on the network that reaches the peer. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((peer_host, peer_port))
        return probe.getsockname()[0]


def _meet(store: dist.Store, rank: int, size: int, timeout_s: float, give_up: threading.Event | None) -> None:
    """Returns once all ranks are here. Raises RuntimeError, on all that are, if one is not in time or gives up, and
    ServiceUnavailableError if another process was here as this rank: the others are connected to that one."""
    deadline = time.monotonic() + timeout_s
    if store.add(f"here/{rank}", 1) > 1:
        raise ServiceUnavailableError(f"rank {rank} was taken before, by a process that is gone; open the group again")
    while not store.check([f"here/{other}" for other in range(size)]):
        if cause := told(store):
            raise RuntimeError(f"another member gave up: {cause}")
        if time.monotonic() > deadline or (give_up is not None and give_up.is_set()):
            missing = [other for other in range(size) if not store.check([f"here/{other}"])]
            raise RuntimeError(f"ranks {missing} are missing")
        time.sleep(0.02)


class BroadcastGroup:
    """Rank 0 sends, all others receive. Every wait ends after `timeout_s`."""

    def __init__(
        self, store: dist.TCPStore, host: str, *, rank: int, size: int, backend: str, group_id: str, timeout_s: float,
        give_up: threading.Event | None = None,
    ) -> None:  # fmt: skip
        """Returns once all members have met, which another thread can end by setting `give_up`."""
        self.rank = rank
        self._timeout = timedelta(seconds=timeout_s)
        self._deadline: float | None = None
        self.give_up: threading.Event | None = None
        """What ends broadcasts from another thread."""
        self.is_nccl = backend == "nccl"
        self._has_left = False
        meet_s = min(timeout_s, MEET_S)
        store.set_timeout(self._timeout)
        self.store = prefixed = dist.PrefixStore(group_id, store)
        try:
            _meet(prefixed, rank, size, meet_s, give_up)
            if self.is_nccl:
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = self._timeout + NCCL_SLACK
                self._backend = dist.ProcessGroupNCCL(prefixed, rank, size, options)
                self._connect(give_up)
            else:
                options = dist.ProcessGroupGloo._Options()
                address = _own_address(host, store.port)
                options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
                options._timeout = timedelta(seconds=meet_s)
                self._backend = dist.ProcessGroupGloo(prefixed, rank, size, options)
        except RuntimeError as error:
            tell(prefixed, f"rank {rank}: {error}")
            raise DeadlineError(
                f"weight group {group_id}: rank {rank} of {size} did not meet the others at {host}:{store.port} within "
                f"{meet_s:g} s ({error}); is every receiver up, and is that port reachable from it?"
            ) from error

    @classmethod
    def join(
        cls, host: str, port: int, *, rank: int, size: int, backend: str, group_id: str, timeout_s: float
    ) -> "BroadcastGroup":
        """A receiver's way in: connects to the sender's store."""
        try:
            store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s))
        except RuntimeError as error:
            raise DeadlineError(f"weight group {group_id}: no sender answers at {host}:{port} ({error})") from error
        return cls(store, host, rank=rank, size=size, backend=backend, group_id=group_id, timeout_s=timeout_s)

    def _connect(self, give_up: threading.Event | None) -> None:
        """NCCL connects the members in their first broadcast, and would wait there for ever for one that has died since they
        met. So a thread makes it, which is left behind if it never comes back."""
        device, outcome = torch.cuda.current_device(), []

        def broadcast() -> None:
            try:
                torch.cuda.set_device(device)
                self._begin(torch.zeros(1, device="cuda")).wait()
                torch.cuda.current_stream().synchronize()
                outcome.append(None)
            except Exception as error:
                outcome.append(error)

        threading.Thread(target=broadcast, name="weight-group-connect", daemon=True).start()
        deadline = time.monotonic() + self._timeout.total_seconds()
        until(lambda: outcome, [self], deadline, give_up, waiting="a weight group's members were being connected")
        if outcome[0] is not None:
            cause = str(outcome[0]).partition("\n")[0]  # what follows is a trace of C++
            self.leave(cause)
            raise DeadlineError(f"a weight group's members could not be connected ({cause}); has one of them died?")

    def bound(self, deadline: float, give_up: threading.Event | None = None) -> None:
        """Broadcasts from now on end by this time of time.monotonic(), or soon after another thread sets `give_up`."""
        self._deadline, self.give_up = deadline, give_up

    def _remaining(self) -> timedelta:
        if self._deadline is None:
            return self._timeout
        return min(self._timeout, max(timedelta(seconds=self._deadline - time.monotonic()), timedelta(milliseconds=1)))

    def start(self, tensor: torch.Tensor) -> "Broadcast":
        """Begins to send (rank 0) or fill (others) one contiguous tensor, on a GPU after the current stream's work so far.
        Raises DeadlineError if a member is missing."""
        try:
            return Broadcast(self, self._begin(tensor), tensor.nbytes)
        except RuntimeError as error:
            raise self.broken(tensor.nbytes, error) from error

    def _begin(self, tensor: torch.Tensor) -> dist.Work:
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.timeout = self._timeout + NCCL_SLACK if self.is_nccl else self._remaining()  # NCCL's is kept by `settle`
        if self.is_nccl:
            options.asyncOp = True  # on a stream of its own
        return self._backend.broadcast([tensor], options)

    def broken(self, nbytes: int, cause: object) -> DeadlineError:
        """What a broadcast that did not end is told as."""
        return DeadlineError(
            f"weight broadcast of {nbytes} bytes did not finish within {self._timeout.total_seconds():g} s, "
            f"or a member of the group died ({cause})"
        )

    def leave(self, cause: str) -> None:
        """Tells the others why, who would wait for this member, and ends what is on its way on this side. On the CPU
        that has a deadline of its own. The group is of no use afterwards."""
        if self._has_left:
            return
        self._has_left = True
        tell(self.store, f"rank {self.rank}: {cause}")
        if self.is_nccl:
            self._backend.abort()
        else:  # it is gone only when its broadcast is, which nobody here need wait for
            last, self._backend = [self._backend], None
            threading.Thread(target=last.clear, name="weight-group-end", daemon=True).start()


class Broadcast:
    """One that is on its way."""

    def __init__(self, group: BroadcastGroup, work: dist.Work, nbytes: int) -> None:
        self._group, self._work, self._nbytes = group, work, nbytes

    def wait(self) -> None:
        """On the CPU until it is done; on a GPU the current stream will wait for it, not the caller: see `settle`. Raises
        DeadlineError if a member is missing, or leaves."""
        try:
            if self._group.is_nccl:
                self._work.wait()
            else:  # which keeps the deadline itself
                until(self._is_done, [self._group], math.inf, self._group.give_up)
        except RuntimeError as error:
            raise self._group.broken(self._nbytes, error) from error

    def _is_done(self) -> bool:
        try:
            return self._work.wait(_SLICE)
        except RuntimeError:
            return self._work.is_completed() and self._work.wait()


def settle(groups: Sequence[BroadcastGroup], device: torch.device, deadline: float, give_up: threading.Event | None) -> None:
    """Waits until all work of the current stream is done; on the CPU it is. Raises as `until`."""
    if device.type != "cuda":
        return
    done = torch.cuda.Event()
    done.record()
    until(done.query, groups, deadline, give_up)


def until(
    is_done: Callable[[], object], groups: Sequence[BroadcastGroup], deadline: float, give_up: threading.Event | None, *,
    waiting: str = "weights were still on their way",
) -> None:  # fmt: skip
    """Asks over and over until the answer is true; `waiting` tells what for.

    Raises DeadlineError, and leaves the groups, at the `deadline` of time.monotonic(), if another thread sets `give_up`, or
    about LOOK_S after another member has left one of them, or its sender is gone.
    """
    look_out, look_from = None, time.monotonic() + LOOK_S
    try:
        while not is_done():
            if look_out is None and time.monotonic() > look_from:
                look_out = LookOut([group.store for group in groups])
            if cause := _why_end(deadline, give_up, look_out):
                for group in groups:
                    group.leave(cause)
                raise DeadlineError(f"{waiting} when {cause}; a member of the group hangs or died")
            time.sleep(0.0001)
    finally:
        if look_out is not None:
            look_out.close()


def _why_end(deadline: float, give_up: threading.Event | None, look_out: LookOut | None) -> str:
    """Empty: it may go on."""
    if give_up is not None and give_up.is_set():
        return "it was given up"
    if look_out is not None and look_out.cause:
        return f"another member left: {look_out.cause}"
    return "its time is over" if time.monotonic() > deadline else ""
