"""The shared memory over which vLLM's workers on a CPU talk: files in /dev/shm that no resource tracker knows.

vLLM removes them in an orderly end only. Once all workers have mapped them nobody needs their names any more: without a name
they go with the workers, however those end.
"""

from pathlib import Path
from typing import Any

_WRAPPED = "_baton_nameless"


def install() -> None:
    """Once in each worker; a second call changes nothing."""
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed as Memory

    if hasattr(Memory, _WRAPPED):
        return
    join = Memory._init_cpu_shm

    def joined(self: Any) -> int:
        handle = join(self)  # ends with a barrier: all have mapped that of all
        for file in Path("/dev/shm").iterdir():
            if file.name.startswith(self.group_name):
                file.unlink(missing_ok=True)
        return handle

    Memory._init_cpu_shm = joined
    setattr(Memory, _WRAPPED, True)
