"""Markers of checkpoints, as whoever reads them wants them: with their digest."""

import json
from pathlib import Path
from typing import Any

from baton.checkpoint_files import FORMAT, MARKER, SUMS, digest_of, read_sums, sums_of


def write_marker(checkpoint: Path, marker: dict[str, Any]) -> None:
    """Into a checkpoint, or into a directory that becomes one without tensors."""
    (checkpoint / MARKER).write_text(json.dumps({"format": FORMAT} | marker))
    others = read_sums(checkpoint) if (checkpoint / SUMS).is_file() else {}
    (checkpoint / SUMS).write_text(sums_of(others | {MARKER: digest_of(checkpoint / MARKER)}))
