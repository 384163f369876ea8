"""A directory of YAML files to load, and a shortcut to the text of the error that a run file causes."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baton.config import ConfigError, RunConfig, load_run


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """Writes files, given as name (with `__` for `/` and without `.yaml`) and text; returns the first one's
    path."""

    def write(**texts: str) -> Path:
        paths = []
        for name, text in texts.items():
            path = tmp_path / (name.replace("__", "/") + ".yaml")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text), encoding="utf-8")
            paths.append(path)
        return paths[0]

    return write


@pytest.fixture
def run_of() -> Callable[..., RunConfig]:
    """A RunConfig of the given sections; `models` is empty unless given."""

    def build(**sections: Any) -> RunConfig:
        return RunConfig.from_mapping({"models": {}, **sections})

    return build


@pytest.fixture
def error_of() -> Callable[..., str]:
    """The message of the ConfigError that the given sections, or a run file with overrides, cause."""

    def text(path: Path | None = None, overrides: tuple[str, ...] = (), **sections: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            if path is None:
                RunConfig.from_mapping({"models": {}, **sections})
            else:
                load_run(path, overrides)
        return str(caught.value)

    return text
