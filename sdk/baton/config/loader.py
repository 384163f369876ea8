"""From a YAML file to a RunConfig.

run file --includes--> one tree --overrides--> --model files--> --${...}--> RunConfig
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baton.config.legacy import rename_options, rename_sections
from baton.config.problems import config_error
from baton.config.run import RunConfig
from baton.config.substitution import substitute
from baton.config.yaml_reader import read_mapping, type_value
from baton.errors import ConfigError


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that the YAML file `path` describes, with `overrides` (`a.b.c=value`) applied on top.

    An override's value has the type that YAML gives it, a number in its key selects from a list, and it wins
    over the file, its includes and its model files. Raises ConfigError with one line for each problem.
    """
    path = Path(path)
    tree = read_tree(path)
    rename_sections(tree)
    for override in overrides:
        _apply_override(tree, override)
    _add_model_files(tree, path)
    rename_options(tree)
    problems: list[str] = []
    tree = substitute(tree, "", problems)
    if problems:
        raise config_error(problems, str(path))
    return RunConfig.from_mapping(tree, source=str(path))


def read_tree(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in `path` merged over those of its `includes`, which may include others.

    The file's own values win over those of a later include, and these over those of an earlier one; mappings
    are merged, everything else is replaced. An include is found relative to the file that names it.
    """
    own = path.resolve()
    if own in including:
        chain = " -> ".join(str(file) for file in (*including, own))
        raise ConfigError(f"includes: {chain} is a circle; remove one of these includes")
    data = read_mapping(path)
    problems: list[str] = []
    includes = substitute(data.pop("includes", None) or [], "includes", problems)
    if problems:
        raise config_error(problems, str(path))
    if not isinstance(includes, list) or not all(isinstance(name, str) for name in includes):
        raise ConfigError(f"{path}: includes: got {includes!r}; must be a list of file names; write [name.yaml]")
    merged: dict[str, Any] = {}
    for name in includes:
        merged = merge(merged, read_tree(path.parent / name, (*including, own)))
    return merge(merged, data)


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A new mapping with the values of both; where both have one, mappings are merged and else `over`
    wins."""
    merged = dict(under)
    for key, value in over.items():
        if isinstance(value, dict):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _add_model_files(tree: dict[str, Any], run_file: Path) -> None:
    """Puts the options in each model's `model_config_file` under those of its section."""
    models = tree.get("models")
    for name, section in models.items() if isinstance(models, dict) else ():
        file_name = section.get("model_config_file") if isinstance(section, dict) else None
        if not isinstance(file_name, str):
            continue
        option = f"models.{name}.model_config_file"
        problems: list[str] = []
        file_name = substitute(file_name, option, problems)
        if problems:
            raise config_error(problems, str(run_file))
        if not file_name:
            continue
        file = run_file.parent / str(file_name)
        if not file.is_file():
            raise ConfigError(f"{option}: got {file_name!r}; must be a file beside {run_file}; {file} does not exist")
        models[name] = merge(read_tree(file), section)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets the option that `override` names in `tree`, making the sections on the way."""
    option, equals, text = override.partition("=")
    keys = option.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {override!r}: must be option=value; write it like runtime.num_episode=10")
    node: Any = tree
    for depth, key in enumerate(keys):
        is_last = depth == len(keys) - 1
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
            if not is_last and node.get(key) is None:
                node[key] = {}
        else:
            where = ".".join(keys[:depth])
            raise ConfigError(f"override {override!r}: {where} has no entry {key!r}; name an existing one")
        if is_last:
            node[index] = type_value(text)
        else:
            node = node[index]
