"""A checkpoint's directory, without torch: is it whole, what does it say of itself, and is every byte what was written.

    step-00000010/
      __0_0.distcp, __1_0.distcp ...  tensors: one file of each trainer rank, in torch's distributed format
      .metadata, common.pt, metadata.json    that format's own books, with which Megatron and torch read it too
      index.json                      where each part of each tensor lies, to the byte
      baton.json                      the marker: step, models, layout, schedules, and what else whoever saved it wanted kept
      SHA256SUMS                      a digest of each file above, as `sha256sum --check` reads it, and one of those lines
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from baton.errors import InvalidRequestError, NotFoundError

MARKER = "baton.json"
INDEX = "index.json"
SUMS = "SHA256SUMS"
PARTIAL = ".partial"
"""Ends the name of a directory that is still being written, or removed."""
FORMAT = 1
OWN_KEYS = ("format", "lineage", "layout", "roles", "files")
"""The marker's keys that are the checkpoint's own; all others are the facts that it was saved with."""
_BLOCK = 1 << 22


def read_marker(path: Path) -> dict[str, Any]:
    """What a whole checkpoint says of itself.

    Raises NotFoundError if `path` is none, InvalidRequestError if it is of another format or its marker or sums are damaged.
    """
    if path.suffix == PARTIAL or not (path / MARKER).is_file():
        raise NotFoundError(f"{path} is not a whole checkpoint; take a directory that SaveCheckpoint returned")
    text = (path / MARKER).read_bytes()
    if hashlib.sha256(text).hexdigest() != read_sums(path).get(MARKER):
        raise InvalidRequestError(f"{path / MARKER} is damaged, as `baton ckpt verify` says too; take another checkpoint")
    marker = json.loads(text)
    if (known := marker.get("format")) != FORMAT:
        raise InvalidRequestError(
            f"{path} is a checkpoint of format {known}, and this Baton reads format {FORMAT}; load it with the version that "
            "wrote it, and carry the model over by an export"
        )
    return marker


def checkpoints_in(directory: Path) -> list[Path]:
    """The whole checkpoints in a directory, in the order in which they were written."""
    markers = [marker for marker in directory.glob(f"*/{MARKER}") if marker.parent.suffix != PARTIAL]
    return [marker.parent for marker in sorted(markers, key=lambda marker: (marker.stat().st_mtime_ns, marker.parent.name))]


def has_books(path: Path) -> bool:
    """Whether it is a checkpoint, of which files may be missing."""
    return any((path / name).is_file() for name in (MARKER, INDEX, SUMS))


def facts_of(marker: Mapping[str, Any]) -> dict[str, Any]:
    """What whoever saved it wanted kept."""
    return {name: value for name, value in marker.items() if name not in OWN_KEYS}


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sums_of(digests: Mapping[str, str]) -> str:
    """The text of SHA256SUMS for files of these digests. Its last line is a digest of the others."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return f"{lines}# {hashlib.sha256(lines.encode()).hexdigest()}\n"


def read_sums(path: Path) -> dict[str, str]:
    """Digest of each file of a checkpoint. Raises NotFoundError if there are none, InvalidRequestError if they are not
    whole."""
    file = path / SUMS
    if not file.is_file():
        raise NotFoundError(f"{path} has no {SUMS}: it is not a whole checkpoint, or that file was removed")
    text = file.read_bytes().decode(errors="replace")
    lines = text.splitlines()[:-1]
    digests = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if sums_of(digests) != text:
        raise InvalidRequestError(f"{file} is damaged: its last line is not the digest of the others")
    return digests


def faults(path: Path) -> Iterator[str]:
    """One line for each file of a checkpoint that is not what was written, with the file's name first.

    Raises NotFoundError if `path` is no checkpoint. Reads every byte.
    """
    if path.suffix == PARTIAL and path.is_dir():
        yield f"{path.name}: a save that was not finished; the checkpoint before it is the newest"
        return
    if not has_books(path):
        raise NotFoundError(f"{path} is not a checkpoint: it has neither {MARKER} nor {INDEX} nor {SUMS}")
    try:
        digests = read_sums(path)
    except (NotFoundError, InvalidRequestError) as error:
        yield f"{SUMS}: {error}"
        return
    marker = path / MARKER
    trusted = marker.is_file() and digest_of(marker) == digests.get(MARKER)
    sizes = json.loads(marker.read_text())["files"] if trusted else {}
    for name, digest in digests.items():
        file = path / name
        if not file.is_file():
            yield f"{name}: missing"
        elif (size := file.stat().st_size) != sizes.get(name, size):
            yield f"{name}: {size} bytes, and {sizes[name]} were written"
        elif digest_of(file) != digest:
            yield f"{name}: {size} bytes as were written, but not the same ones"
