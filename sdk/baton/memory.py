"""How this process gets memory from the kernel."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
_LARGEST_BLOCK = 32 * 2**20
"""glibc takes no larger threshold."""
_GROWTH = 16 * 2**20


def keep_freed_memory(most: int = 2**28) -> bool:
    """Has glibc keep up to `most` freed bytes for the next blocks; returns whether this machine's C library can.

    Messages of a megabyte are otherwise new pages each, which the kernel clears: a third of what gRPC costs. Meant for
    programs that move samples in bulk; call it early, once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    wanted = {_TRIM_THRESHOLD: most, _TOP_PAD: _GROWTH, _MMAP_THRESHOLD: _LARGEST_BLOCK}
    return all(mallopt(option, value) == 1 for option, value in wanted.items())
