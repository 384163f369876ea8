"""The broadcast group between one sender and its receivers: a process group beside whatever else each side runs."""

import socket
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from baton.errors import DeadlineError, ServiceUnavailableError

MEET_S = 60.0
"""How long members wait for each other: all of them are told at once, so who is not there by then will not come."""

_GIVEN_UP = "given up"
"""Key of the rendezvous store by which a member that leaves before all have met takes the others with it."""


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
        if store.check([_GIVEN_UP]):
            raise RuntimeError("another member gave up")
        if time.monotonic() > deadline or (give_up is not None and give_up.is_set()):
            store.set(_GIVEN_UP, b"")
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
        meet_s = min(timeout_s, MEET_S)
        store.set_timeout(self._timeout)
        prefixed = dist.PrefixStore(group_id, store)
        try:
            _meet(prefixed, rank, size, meet_s, give_up)
            if backend == "nccl":
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = self._timeout
                self._backend = dist.ProcessGroupNCCL(prefixed, rank, size, options)
            else:
                options = dist.ProcessGroupGloo._Options()
                address = _own_address(host, store.port)
                options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
                options._timeout = timedelta(seconds=meet_s)
                self._backend = dist.ProcessGroupGloo(prefixed, rank, size, options)
        except RuntimeError as error:
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

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Sends (rank 0) or fills (others) one contiguous tensor. Raises DeadlineError if a member is missing."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.timeout = self._timeout
        try:
            self._backend.broadcast([tensor], options).wait()
        except RuntimeError as error:
            raise DeadlineError(
                f"weight broadcast of {tensor.nbytes} bytes did not finish within {self._timeout.total_seconds():g} s, "
                f"or a member of the group died ({error})"
            ) from error
