"""A digest of a model's weights that does not depend on the order of tensors, on shards or on the device.

Each tensor gives two 64-bit sums over its bytes, one weighted by position, computed where the tensor lives. Name, type,
shape and sums are hashed to 128 bits; the digest is the sum of the tensors' hashes, so that pipeline stages can compute
theirs apart. It guards against mistakes (a stale, swapped, truncated or reordered tensor), not against forgery.
"""

from hashlib import blake2b

import torch

_MODULUS = 1 << 128


def _sums(tensor: torch.Tensor) -> tuple[int, int]:
    raw = tensor.contiguous().view(-1).view(torch.uint8)
    if raw.storage_offset() % 8:
        raw = raw.clone()  # words of eight bytes can only be seen in memory that is aligned to them
    whole = raw.numel() // 8 * 8
    tail = int.from_bytes(bytes(raw[whole:].tolist()), "little")
    words = raw[:whole].view(torch.int64)
    weights = 2 * torch.arange(words.numel(), dtype=torch.int64, device=words.device) + 1
    # int64 wraps alike everywhere
    return int(words.sum()) + tail, int((words * weights).sum()) + tail * (2 * words.numel() + 1)


class WeightsDigest:
    """Collects tensors in any order."""

    def __init__(self, total: int = 0) -> None:
        self._total = total

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Takes one whole tensor under its Hugging Face name."""
        first, second = (value % (1 << 64) for value in _sums(tensor))
        text = f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|{first}|{second}"
        self._total += int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "big")

    def merge(self, other: str) -> None:
        """Adds the hexadecimal digest of other tensors."""
        self._total += int(other, 16)

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._total % _MODULUS:032x}"
