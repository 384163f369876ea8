"""One line for each thing that is wrong with a run file: the option's path, its value, the rule, and the
fix."""

import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from baton.config.base import Section
from baton.config.schema_paths import locate, suggestion
from baton.errors import ConfigError

_PASSWORD = re.compile(r"(?<=//)[^/@\s]*@")
_NOTATION = re.compile(r"^(?:int|float|bool|str) = (.+)$")

# pydantic's comparison -> (the words of the rule, the words of the fix).
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}

_KINDS = {
    "int_type": ("a whole number", "write digits, as 4"),
    "int_from_float": ("a whole number", "write digits, as 4"),
    "float_type": ("a number", "write digits, as 0.5"),
    "finite_number": ("a finite number", "write digits, as 0.5"),
    "bool_type": ("true or false", "write true or false, without quotes"),
    "string_type": ("text", "put it in quotes"),
    "list_type": ("a list", "put it in [ ]"),
    "dict_type": ("a mapping", "write `key: value` lines below it"),
    "model_type": ("a section", "write `key: value` lines below it, or {} for the defaults"),
}


class BrokenRules(ValueError):
    """Raised by a validator that found several problems; each is a finished line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def show(value: Any) -> str:
    """`value` as YAML would write it on one line, cut to 80 characters, without the password of an
    address."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = _PASSWORD.sub("***@", text)
    return text if len(text) <= 80 else text[:77] + "..."


def problem(path: str, value: Any, rule: str, fix: str) -> str:
    """One line: `path`, what it is, the `rule` that it breaks, and the `fix`."""
    return f"{path}: got {show(value)}; {rule}; {fix}"


def config_error(problems: Sequence[str], source: str = "") -> ConfigError:
    """The error that lists `problems`, one a line, under the name of the file `source`."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    head = f"{source or 'run configuration'}: {count}"
    return ConfigError("\n".join([head, *(f"  {line}" for line in problems)]))


def from_validation(error: ValidationError, root: type[Section]) -> list[str]:
    """One line for each problem that pydantic found while it validated `root`."""
    lines: list[str] = []
    for detail in error.errors(include_url=False):
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, BrokenRules):
            lines += cause.problems
        elif detail["type"] != "default_factory_not_called":  # a consequence of another problem in the same section
            lines.append(_line(dict(detail), root))
    return lines


def _line(detail: dict[str, Any], root: type[Section]) -> str:
    """The line for one of pydantic's error details."""
    path, owner = locate(root, detail["loc"])
    value, kind, context = detail["input"], detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden" and owner is not None:
        key = path.rsplit(".", 1)[-1]
        return problem(path, value, "is not an option", suggestion(root, owner, key))
    if kind == "missing":
        return f"{path}: is missing; must be given; add it"
    if kind == "union_tag_not_found":
        tag = context["discriminator"].strip("'")
        return f"{path}.{tag}: is missing; must say which kind of {path} this is; add it"
    if kind == "union_tag_invalid":
        tag = context["discriminator"].strip("'")
        return problem(f"{path}.{tag}", context["tag"], f"must be one of {context['expected_tags']}", "choose one")
    if kind == "literal_error":
        return problem(path, value, f"must be {_yaml_words(context['expected'])}", "choose one of these")
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        limit = f"{words} {context[bound]}"
        return problem(path, value, f"must be {limit}", f"write a number {limit}")
    if kind in _KINDS:
        rule, fix = _KINDS[kind]
        return problem(path, value, f"must be {rule}", _type_fix(value, kind) or fix)
    if kind == "value_error":
        return f"{path}: got {show(value)}; {context['error']}"
    return problem(path, value, detail["msg"], "correct it")


def _yaml_words(expected: str) -> str:
    """pydantic's list of the allowed values, with true and false as YAML writes them."""
    return {"True": "true", "False": "false"}.get(expected, expected)


def _type_fix(value: Any, kind: str) -> str | None:
    """What to write instead of a value of the wrong type, if it shows what was meant."""
    if value is None:
        return "remove the line to get the default"
    if isinstance(value, float) and value.is_integer() and kind.startswith("int"):
        return f"write {int(value)}"
    if not isinstance(value, str):
        return None
    if notation := _NOTATION.match(value):
        return f"write {notation[1]}; `{value}` is the manual's way to give type and default"
    if value == "None":
        return "write null, or remove the line"
    if kind == "list_type":
        return f"write [{value}]"
    if kind in ("int_type", "float_type") and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", value):
        return f"write {value} without quotes"
    if kind == "bool_type" and value.lower() in ("true", "false"):
        return f"write {value.lower()} without quotes"
    return None
