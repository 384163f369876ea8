"""Where a process and all below it put their temporary files, so that these go with it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def temporary_files() -> Iterator[dict[str, str]]:
    """Gives the environment of a process whose temporary files are removed on leaving; they lie where ours would.

    What torch compiles stays: another start needs it again.
    """
    compiled = f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
    cache = {"TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", compiled)}
    with tempfile.TemporaryDirectory(prefix="baton-", ignore_cleanup_errors=True) as directory:
        yield {"TMPDIR": directory, **cache}
