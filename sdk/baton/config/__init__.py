"""The run file: its schema, its rules, and the loader. `load_run(path)` is the way in."""

from baton.config.loader import load_run
from baton.config.run import RunConfig
from baton.errors import ConfigError

__all__ = ["ConfigError", "RunConfig", "load_run"]
