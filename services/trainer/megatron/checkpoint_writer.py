"""Writes Megatron's checkpoint files from threads of this process.

Megatron forks a process per file. The trainer's rank 0 serves gRPC from threads of its own, and a fork while one of them
holds a lock leaves a child that waits for ever, and the save with it.
"""

from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync


def _write_bucket(transforms: list[Any], index: int, bucket: Any) -> list[Any] | Exception:
    """Writes one file. Returns what was written where, or the error."""
    results, pending = Queue(), Queue()
    pending.put(index)
    FileSystemWriterAsync.write_preloaded_data(transforms, index, bucket, results, pending, use_fsync=True)
    return results.get_nowait()[1]


def _write_in_threads(transforms: list[Any], _use_msc: bool, _rank: int, buckets: list[Any], results: Any) -> None:
    """Stands in for FileSystemWriterAsync.write_preloaded_data_multiproc: the same arguments, the same answer."""
    with ThreadPoolExecutor(max(len(buckets), 1), "checkpoint") as pool:
        written = list(pool.map(lambda item: _write_bucket(transforms, *item), enumerate(buckets)))
    failed = next((outcome for outcome in written if isinstance(outcome, Exception)), None)
    results.put(failed if failed is not None else dict(enumerate(written)))


def write_without_forking() -> None:
    """Makes every checkpoint of this process be written so, with a queue that needs no process of its own either."""
    filesystem_async._results_queue = Queue()
    FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(_write_in_threads)
