"""Generates docs/run-file.md from the run file's schema: every option with its type, default and meaning.

python scripts/gen_config_docs.py           write docs/run-file.md
python scripts/gen_config_docs.py --check   fail if it is not what the schema gives
"""

import argparse
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from baton.config.base import Section
from baton.config.inert import INERT_OPTIONS, OF_POLICY_ALONE
from baton.config.models import ModelsConfig
from baton.config.roles import RoleConfig
from baton.config.run import RunConfig
from baton.config.schema_paths import sections_in, tag
from baton.config.unbuilt import UNBUILT_OPTIONS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "run-file.md"

INTRODUCTION = """\
<!-- Made by scripts/gen_config_docs.py from sdk/baton/config. Change the docstrings there, not this page. -->
# The run file

One YAML file describes one run. `models: {policy: {}}` is the shortest that loads; `deploy/runs/` has complete ones.

- An option that the schema does not know is an error, which names the nearest one that it does. All problems of a file are
  told at once. Values are not converted: `"4"` is text and `4` a number.
- `includes: [base.yaml]` merges other files under this one, each found beside the file that names it; a later one wins over
  an earlier one, and the file itself over all.
- `--set section.option=value` on a command line wins over the file and whatever it includes.
- `${NAME}` stands for an environment variable, `${NAME:default}` for one that may be unset, `$${` for a literal `${`.
- `model_config_file` of a model names a file with more options of its section; the section's own win.
- *Not carried out yet* marks options that load, because existing files have them, but that no service acts on: a run that
  sets one does not start. Options that are accepted and do nothing are listed at the end, each with the reason.
"""

# What an annotation is in words; a limit of a number is added to it.
TYPES = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text", dict: "mapping"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
NOT_YET = "*Not carried out yet.*"


def bounds(metadata: list[Any]) -> str:
    """The limits in a field's metadata, as `, at least 1`."""
    limits = [item for entry in metadata for item in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    texts = [
        f", {words} {getattr(item, name):g}" for item in limits for name, words in BOUNDS.items() if hasattr(item, name)
    ]
    return "".join(texts)


def type_words(annotation: Any, metadata: list[Any]) -> str:
    """An annotation in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(arguments[0], list(arguments[1:]))
    if origin is Literal:
        return " or ".join(f"`{yaml_words(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if kind is type(None) else type_words(kind, metadata) for kind in arguments)
    if origin is list:
        return f"list of {type_words(arguments[0], metadata)}".replace("section", "sections")
    if sections_in(annotation):
        return "section"
    return TYPES[origin or annotation] + bounds(metadata)


def yaml_words(value: Any) -> str:
    """A value as a run file would have it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def default_words(field: FieldInfo) -> str:
    """What the option is when it is left out."""
    if field.is_required():
        return "required"
    if field.default_factory is None:
        return f"`{yaml_words(field.default)}`"
    return f"`{field.default_factory()}`" if field.default_factory in (list, dict) else "derived"


def meaning(path: str, name: str, field: FieldInfo) -> str:
    """The field's docstring on one line."""
    text = " ".join((field.description or "").split()).replace("|", "\\|")
    everywhere = UNBUILT_OPTIONS["models.*"] if re.fullmatch(r"models\.[^.]+", path) else ()
    unbuilt = name in (*UNBUILT_OPTIONS.get(path, ()), *everywhere)
    return f"{text} {NOT_YET}" if unbuilt else text


def table(path: str, section: type[Section], hidden: frozenset[str]) -> Iterator[str]:
    """The options of a section, one a row; what has no effect is left to the end of the page."""
    yield "| option | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for name, field in section.model_fields.items():
        if name not in hidden and not (field.description or "").startswith("Inert."):
            kind = type_words(field.annotation, field.metadata)
            default = "" if sections_in(field.annotation) and kind == "section" else default_words(field)
            yield f"| `{name}` | {kind} | {default} | {meaning(path, name, field)} |"
    yield ""


def describe(path: str, section: type[Section], title: str = "", hidden: frozenset[str] = frozenset()) -> Iterator[str]:
    """A section's heading, what it is for, its options, and the sections in it."""
    yield f"{'#' * (2 + path.count('.'))} {title or f'`{path}`'}\n"
    yield " ".join((section.__doc__ or "").split()) + "\n"
    yield from table(path, section, hidden)
    for name, field in section.model_fields.items():
        for inner in sections_in(field.annotation) if name not in hidden else ():
            is_list = get_origin(field.annotation) is list
            yield from describe(f"{path}.{name}", inner, f"`{path}.{name}`, each entry" if is_list else "")


def describe_models() -> Iterator[str]:
    """The roles; what all of them have is told once."""
    yield "## `models`\n"
    yield f"{ModelsConfig.__doc__}\n"
    yield from table("models", ModelsConfig, frozenset())
    yield from describe("models.*", RoleConfig, "Options of every model")
    roles: dict[type[Section], list[str]] = {}
    for name, field in ModelsConfig.model_fields.items():
        roles.setdefault(sections_in(field.annotation)[0], []).append(f"`models.{name}`")
    for section, names in roles.items():
        yield from describe(names[0].strip("`"), section, ", ".join(names), unchanged_from_role(section))


def unchanged_from_role(section: type[Section]) -> frozenset[str]:
    """The options of every model that this role's class does not define anew."""
    own = {name for kind in section.__mro__[: section.__mro__.index(RoleConfig)] for name in inspect.get_annotations(kind)}
    return frozenset(RoleConfig.model_fields) - own


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for name, field in RunConfig.model_fields.items():
        sections = sections_in(field.annotation)
        if name == "models":
            parts += describe_models()
        elif name != "runtime_env":  # all of it is without effect
            for section in sections:
                parts += describe(name, section, f"`{name}` with `{tag(section)}`" if len(sections) > 1 else "")
    parts += ["## Accepted without effect\n", "| option | why it does nothing |", "| --- | --- |"]
    parts += [f"| `{path}` | {reason} |" for path, reason in INERT_OPTIONS.items()]
    parts += [f"| `models.*.{name}`, but for `policy` | {reason} |" for name, reason in OF_POLICY_ALONE.items()]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        sys.exit(f"docs/{PAGE.name} is not what the schema gives; run `python scripts/gen_config_docs.py`")


if __name__ == "__main__":
    main()
