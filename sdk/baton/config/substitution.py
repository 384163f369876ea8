"""`${NAME}` and `${NAME:default}` in the values of a run file.

A value that is nothing but one placeholder takes the type that YAML gives to what replaces it: `${N:4}` is a
number. Inside a longer string the text is inserted. A default may hold colons, braces in pairs, and further
placeholders. `$${` stands for a literal `${`.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from baton.config.yaml_reader import type_value

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Unset(Exception):
    """A placeholder cannot be replaced; its message is the problem, without the option's path."""


def _closing_brace(text: str, start: int) -> int:
    """Index of the brace that closes the placeholder whose `${` is at `start`."""
    depth = 0
    for index in range(start + 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise _Unset(f"has no closing brace in {text[start:]!r}; add `}}`, or write $${{ for a literal ${{")


def _replacement(body: str, env: Mapping[str, str]) -> str:
    """What replaces the placeholder with `body` between its braces."""
    name, has_default, default = body.partition(":")
    if not _NAME.fullmatch(name):
        raise _Unset(f"has ${{{body}}}, which names no variable; write $${{ for a literal ${{")
    if name in env:
        return env[name]
    if has_default:
        return _expand(default, env)
    raise _Unset(f"needs the environment variable {name}, which is not set; set it, or write ${{{name}:default}}")


def _expand(text: str, env: Mapping[str, str]) -> str:
    """`text` with every placeholder replaced."""
    parts: list[str] = []
    position = 0
    while (start := text.find("${", position)) >= 0:
        if start > 0 and text[start - 1] == "$":
            parts.append(text[position : start - 1] + "${")
            position = start + 2
            continue
        end = _closing_brace(text, start)
        parts.append(text[position:start] + _replacement(text[start + 2 : end], env))
        position = end + 1
    return "".join(parts) + text[position:]


def _is_one_placeholder(text: str) -> bool:
    return text.startswith("${") and _closing_brace(text, 0) == len(text) - 1


def substitute(value: Any, path: str, problems: list[str], env: Mapping[str, str] | None = None) -> Any:
    """A copy of `value` (the option at `path`) with every placeholder in it replaced from `env`.

    Mappings and lists are followed; keys are left alone. `env` is the process's environment if left out. A
    placeholder that has neither a variable nor a default adds a line to `problems`.
    """
    env = os.environ if env is None else env
    if isinstance(value, dict):
        return {key: substitute(item, f"{path}.{key}" if path else str(key), problems, env) for key, item in value.items()}
    if isinstance(value, list):
        return [substitute(item, f"{path}.{index}", problems, env) for index, item in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    try:
        stripped = value.strip()
        if _is_one_placeholder(stripped):
            return type_value(_expand(stripped, env))
        return _expand(value, env)
    except _Unset as problem:
        problems.append(f"{path}: {problem}")
        return value


def escape(value: Any) -> Any:
    """A copy of `value` that `substitute` makes `value` of again: what looks like a placeholder in it is a text."""
    if isinstance(value, dict):
        return {key: escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape(item) for item in value]
    return value.replace("${", "$${") if isinstance(value, str) else value
