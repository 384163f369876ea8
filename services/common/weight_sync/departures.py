"""How the members of a broadcast group learn that one of them has left: NCCL would let the others wait for it.

Who leaves writes why into the group's rendezvous store, and who waits looks there. The store is served by the sender: one
that is gone breaks the connection; one that hangs answers nothing, so no call to it is made by a thread that must go on.
"""

import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from baton.api.common.v1 import weights_pb2

LOOK_S = 1.0
"""Between two looks of a member that waits for others."""

TELL_S = 1.0
"""How long a member that leaves waits until the others can read why."""

_LEFT = "left"
_CAUSE_CHARACTERS = 500


def tell(store: dist.Store, cause: str) -> None:
    """Writes why this member leaves, unless another one has before."""

    def write() -> None:
        with suppress(RuntimeError):  # the sender is gone, which tells the others as much
            store.compare_set(_LEFT, "", cause[:_CAUSE_CHARACTERS])

    writing = threading.Thread(target=write, name="weight-group-tell", daemon=True)
    writing.start()
    writing.join(TELL_S)


def told(store: dist.Store) -> str:
    """Why the first member left; empty if none has."""
    return store.get(_LEFT).decode(errors="replace") if store.check([_LEFT]) else ""


def call_off(group: weights_pb2.WeightGroup, cause: str) -> None:
    """Has all members leave the group, of every sender, as if one of them had left it. Takes TELL_S per sender or two, if
    that answers nothing."""
    for sender in group.senders:
        with suppress(RuntimeError):  # it is gone
            store = dist.TCPStore(sender.store_host, sender.store_port, is_master=False, timeout=timedelta(seconds=TELL_S))
            tell(dist.PrefixStore(group.group_id, store), cause)


class LookOut:
    """Looks into the groups' stores until it is closed."""

    def __init__(self, stores: Sequence[dist.Store]) -> None:
        self.cause = ""
        """Why a member has left; empty: none has."""
        self._stores = stores
        self._closed = threading.Event()
        threading.Thread(target=self._look, name="weight-group-look-out", daemon=True).start()

    def close(self) -> None:
        """Ends it; does not wait for a look that is under way."""
        self._closed.set()

    def _look(self) -> None:
        while not self._closed.is_set() and not self.cause:
            for store in self._stores:
                try:
                    self.cause = self.cause or told(store)
                except RuntimeError as error:
                    self.cause = f"the sender is gone ({error})"
            self._closed.wait(LOOK_S)
