"""Where TRL is installed: a directory of its own inside .venv, in the PYTHONPATH of those processes only that are to see it.

    python benchmarks/trl_site.py     installs it if need be and prints the directory

For `make bench-episode`, and for the tests that compare our losses with TRL's.
"""

import fcntl
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent.parent / "requirements" / "bench.txt"
LIMIT_S = 900.0


def install_trl() -> Path:
    """Installs requirements/bench.txt unless that is done; two processes wait for each other. Returns the directory."""
    site = Path(sys.prefix) / "bench" / "site-packages"
    stamp, wanted = site / ".installed", REQUIREMENTS.read_text()
    site.mkdir(parents=True, exist_ok=True)
    with (site.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted:
            return site
        print(f"installing TRL into {site}", file=sys.stderr, flush=True)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps", "--upgrade"]
        command = [*pip, "--target", str(site), "-r", str(REQUIREMENTS)]
        if subprocess.run(command, stdout=sys.stderr, timeout=LIMIT_S).returncode:
            raise SystemExit("TRL, which this compares with, could not be installed by pip; see its message above")
        stamp.write_text(wanted)
    return site


if __name__ == "__main__":
    print(install_trl())
