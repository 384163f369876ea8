"""YAML for run files: PyYAML's safe loader with the surprises taken out.

YAML 1.1, which PyYAML follows, reads 1e-6 as a string, 12:30 as 750, 010 as 8 and 2026-01-01 as a date, and
lets a repeated key win silently. Here 1e-6 is a number, 010 is 10, the other two are strings, and a repeated
key is an error.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from baton.errors import ConfigError

_BOOL = re.compile(r"^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$")
_INT = re.compile(r"^[-+]?(?:0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+|[0-9][0-9_]*)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")


class RunFileLoader(yaml.SafeLoader):
    """Safe loader with the rules of this module."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Builds a mapping; a key that occurs twice in it is an error (a merged `<<` key may be
        overridden)."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if isinstance(key_node, yaml.ScalarNode) and key in seen:
                raise yaml.constructor.ConstructorError(
                    "while reading a section",
                    node.start_mark,
                    f"the key {key!r} occurs twice",
                    key_node.start_mark,
                )
            seen.add(key if isinstance(key_node, yaml.ScalarNode) else id(key_node))
        return super().construct_mapping(node, deep=deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """Builds a whole number; a leading zero does not make it octal."""
        text = node.value.replace("_", "").lower()
        is_prefixed = text.lstrip("+-")[:2] in ("0x", "0o", "0b")
        return int(text, 0 if is_prefixed else 10)


class RunFileDumper(yaml.SafeDumper):
    """Safe dumper that quotes every text that YAML 1.1 or RunFileLoader would take for something else."""


RunFileLoader.add_constructor("tag:yaml.org,2002:int", RunFileLoader.construct_int)
for _tag, _pattern, _first in (
    ("bool", _BOOL, "yYnNtTfFoO"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("merge", re.compile(r"^<<$"), "<"),
):
    for _class in (RunFileLoader, RunFileDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file `path`; an empty file is an empty mapping.

    Raises ConfigError if the file cannot be read, is not YAML, or holds something other than a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}); check the path") from error
    try:
        data = yaml.load(text, RunFileLoader)
    except yaml.YAMLError as error:
        hint = "; put quotes around a ${...} that stands in [ ] or { } or holds a blank" if "${" in text else ""
        raise ConfigError(f"{path}: is not valid YAML{hint}: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds a {type(data).__name__}; must be a mapping; start it with `key: value` lines")
    return data


def type_value(text: str) -> Any:
    """The value that `text` would have in a YAML file; text that is no number, word or [list] of YAML stays
    text."""
    stripped = text.strip()
    try:
        if stripped[:1] in tuple("[{\"'"):
            value = yaml.load(stripped, RunFileLoader)
            # `{prompt}` is the placeholder of a template, not a mapping of a key without a value.
            return text if isinstance(value, dict) and None in value.values() else value
        loader = RunFileLoader("")
        tag = loader.resolve(yaml.ScalarNode, stripped, (True, False))
        value = loader.construct_object(yaml.ScalarNode(tag, stripped))
    except (yaml.YAMLError, ValueError):
        return text
    return text if isinstance(value, str) else value
