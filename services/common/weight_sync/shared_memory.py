"""One process's GPU memory in another on the same GPU, by CUDA's inter-process handles."""

from collections.abc import Sequence
from functools import partial

import torch

from baton.api.common.v1 import weights_pb2
from services.common.weight_sync.plan import Bucket, Region
from services.common.weight_sync.replay import Replay, copy
from services.common.weight_sync.transfer import Lane, NoWire


def share(regions: Sequence[Region], sender: weights_pb2.WeightSender) -> None:
    """Writes into the message where the regions, which its parts describe in this order, lie in this process's memory. They
    must stay there as long as the group is open."""
    numbers: dict[tuple[int, torch.dtype], int] = {}
    for region, part in zip(regions, sender.parts, strict=True):
        storage, dtype = region.matrix.untyped_storage(), region.matrix.dtype
        key = storage.data_ptr(), dtype
        if key not in numbers:
            numbers[key] = len(numbers)
            _, memory, size, offset, counter, counter_offset, event, sync = storage._share_cuda_()
            sender.storages.add(
                dtype=str(dtype).removeprefix("torch."), memory_handle=memory, size_bytes=size, offset_bytes=offset,
                counter_handle=counter, counter_offset=counter_offset, event_handle=event, event_sync_required=sync,
            )  # fmt: skip
        part.place.storage = numbers[key]
        part.place.offset = region.matrix.storage_offset()
        part.place.row_stride = region.matrix.stride(0)


class SharedWire:
    """Copies each bucket's parts out of the sender's parameters, and converts them on the way."""

    transport = "ipc"

    def __init__(self, sender: weights_pb2.WeightSender, buckets: Sequence[Bucket], device: torch.device) -> None:
        """Maps the sender's memory. Raises RuntimeError if it cannot be reached, from another container without its IPC
        namespace for example."""
        self._device = device
        self._replay: Replay | None = None
        storages = [_mapped(storage, device) for storage in sender.storages]
        slots = iter(sender.parts)
        self._sources = [
            [
                torch.as_strided(storages[place.storage], slot.part.size, (place.row_stride, 1), place.offset)
                for slot in bucket.slots
                for place in (next(slots).place,)
            ]
            for bucket in buckets
        ]

    def start(self, lane: Lane, index: int) -> NoWire:
        """On the current stream; the lane must be the same every time."""
        if self._replay is None:
            pieces = [
                partial(copy, views, sources)
                for views, sources in zip(lane.views, self._sources, strict=True)
            ]
            self._replay = Replay(pieces, self._device)
        self._replay.run(index)
        return NoWire()

    def record(self) -> None:
        """From now on by graphs."""
        self._replay.record()


def _mapped(shared: weights_pb2.SharedStorage, device: torch.device) -> torch.Tensor:
    storage = torch.UntypedStorage._new_shared_cuda(
        device.index or 0, shared.memory_handle, shared.size_bytes, shared.offset_bytes, shared.counter_handle,
        shared.counter_offset, shared.event_handle, shared.event_sync_required,
    )  # fmt: skip
    return torch.empty(0, dtype=getattr(torch, shared.dtype), device=device).set_(storage)
