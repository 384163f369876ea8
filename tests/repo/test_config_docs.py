"""docs/run-file.md: the reference is what the schema says now."""

import subprocess
import sys
from pathlib import Path

from baton.config.run import RunConfig
from baton.config.schema_paths import option_paths

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_what_the_schema_gives():
    command = [sys.executable, "scripts/gen_config_docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_every_option_is_in_the_reference():
    page = (ROOT / "docs" / "run-file.md").read_text()
    names = {path.rpartition(".")[2] for path in option_paths(RunConfig) if "." in path}
    assert len(names) > 150
    missing = {name for name in names if f"`{name}`" not in page and f".{name}`" not in page}
    assert missing == set()
