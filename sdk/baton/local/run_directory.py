"""The directory of one run, and the record in it by which other commands find the run's processes.

<output dir>/latest -> <run id>         the deployment that was started last
<output dir>/<run id>/run.yaml          the run file after includes, environment and overrides
                      deployment.json   who supervises, which services run where
                      logs/<name>.log   output of each service
                      ready/<name>.json what a service said about itself when it was ready
                      store/            files of the local store
"""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from baton.errors import ConfigError, NotFoundError
from baton.local.process_tree import start_time

_RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_LATEST = "latest"


@dataclass
class ServiceRecord:
    """One service: `pid` and `log` are None for one that runs elsewhere, `address` is None until it is ready. `start` is
    that of its process in clock ticks since boot."""

    pid: int | None = None
    address: str | None = None
    log: str | None = None
    start: int | None = None

    @classmethod
    def of(cls, pid: int, address: str, log: Path) -> Self:
        """That of a process of this machine."""
        return cls(pid, address, str(log), start_time(pid))


@dataclass
class DeploymentRecord:
    """What deployment.json holds.

    `supervisor_start` is the supervisor's start in clock ticks since boot; `error` is why the deployment ended by itself.
    """

    run_id: str
    supervisor_pid: int
    supervisor_start: int | None
    services: dict[str, ServiceRecord] = field(default_factory=dict)
    dashboard_url: str | None = None
    error: str | None = None
    app: str | None = None
    """The user's program, as module:attribute."""

    @property
    def is_running(self) -> bool:
        """Whether the supervisor lives: the process that has its pid is the one that wrote this record."""
        return self.supervisor_start is not None and start_time(self.supervisor_pid) == self.supervisor_start


class RunDirectory:
    """Paths of one run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_file = path / "run.yaml"
        self.record_file = path / "deployment.json"

    @classmethod
    def create(cls, output_dir: Path, run_id: str) -> Self:
        """Makes the directory of a new run and points `latest` at it. Raises ConfigError if the run id is bad or taken."""
        if not _RUN_ID.fullmatch(run_id) or run_id == _LATEST:
            raise ConfigError(
                f"--run-id: got {run_id!r}; must be letters, digits, '.', '_' and '-', without '.' first, and not 'latest'"
            )
        path = output_dir.absolute() / run_id
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise ConfigError(f"--run-id: {run_id} is taken: {path} exists; choose another --run-id") from None
        except OSError as error:
            raise ConfigError(f"--output-dir: cannot make {path}: {error.strerror}; choose another --output-dir") from None
        _point(output_dir / _LATEST, run_id)
        return cls(path)

    @classmethod
    def find(cls, output_dir: Path, run_id: str | None) -> Self:
        """The directory of run `run_id`, or of the latest. Raises NotFoundError if there is none."""
        path = (output_dir / (run_id or _LATEST)).resolve()
        directory = cls(path)
        if not directory.record_file.is_file():
            what = f"no deployment {run_id}" if run_id else "no deployment"
            raise NotFoundError(f"{what} in {output_dir}; `baton up` starts one, --output-dir says where to look")
        return directory

    def prepare_again(self) -> None:
        """For services that are started anew: what those before said about themselves goes, and `latest` is this run."""
        shutil.rmtree(self.path / "ready", ignore_errors=True)
        self.remove_half_written()
        _point(self.path.parent / _LATEST, self.path.name)

    def log(self, name: str) -> Path:
        """Log of service `name`."""
        return self.path / "logs" / f"{name}.log"

    def logs(self) -> dict[str, Path]:
        """All logs by service name."""
        return {log.stem: log for log in sorted((self.path / "logs").glob("*.log"))}

    def ready_file(self, name: str) -> Path:
        """Ready file of service `name`."""
        file = self.path / "ready" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        return file

    def remove_half_written(self) -> None:
        """Removes checkpoints and exports that nobody will finish; every finished one has its final name."""
        for partial in (*self.path.glob("*.partial"), *self.path.glob("checkpoints/*.partial")):
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)

    def write_record(self, record: DeploymentRecord) -> None:
        """Replaces deployment.json; a reader sees the old one or the new one."""
        partial = self.record_file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(record), indent=2) + "\n")
        partial.replace(self.record_file)

    def read_record(self) -> DeploymentRecord:
        """What deployment.json says."""
        data = json.loads(self.record_file.read_text())
        services = {name: ServiceRecord(**facts) for name, facts in data.pop("services").items()}
        return DeploymentRecord(**data, services=services)


def _point(link: Path, target: str) -> None:
    """Makes `link` a symbolic link to `target`, replacing the one before in one step."""
    partial = link.with_name(f".{link.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(link)
