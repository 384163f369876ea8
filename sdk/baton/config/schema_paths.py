"""Where an option stands in the schema: paths for messages, and the names that a wrong one may have meant."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from baton.config.base import Section

# Names that are refused -> what to write instead.
_REPLACED = {
    "save_interval": "write save_episode_interval, which counts episodes",
    "bf16": "write dtype: bfloat16",
    "fp16": "write dtype: float16",
    "params_dtype": "write dtype: bfloat16, float16 or float32",
    "args_dict": "write the options in the section itself, or name a file in model_config_file",
}


def sections_in(annotation: Any) -> tuple[type[Section], ...]:
    """The section classes that an annotation allows, through unions, lists and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    return tuple(section for argument in get_args(annotation) for section in sections_in(argument))


def _has_tag(section: type[Section], tag: Any) -> bool:
    """Whether `section` is the member of a union that `tag` selects."""
    return any(
        get_origin(field.annotation) is Literal and tag in get_args(field.annotation)
        for field in section.model_fields.values()
    )


def locate(root: type[Section], loc: Sequence[int | str]) -> tuple[str, type[Section] | None]:
    """The dotted path of pydantic's location `loc` under `root`, and the section whose key its last item is.

    Pydantic puts the tag of the chosen member of a union into a location; it is no key of the file and is
    left out.
    """
    keys: list[str] = []
    candidates: tuple[type[Section], ...] = (root,)
    owner: type[Section] | None = None
    for item in loc:
        if isinstance(item, str) and len(candidates) > 1:
            candidates = tuple(section for section in candidates if _has_tag(section, item))
            continue
        keys.append(str(item))
        if isinstance(item, int):
            continue
        owner = candidates[0] if candidates else None
        field = owner.model_fields.get(item) if owner else None
        candidates = sections_in(field.annotation) if field else ()
    return ".".join(keys), owner


def option_paths(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Dotted paths of all options under `section`."""
    for name, field in section.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        yield path
        for inner in sections_in(field.annotation):
            yield from option_paths(inner, path)


def tag(section: type[Section]) -> str:
    """What tells a section from the others that may stand in its place, as `source: jsonl`."""
    literals = {name: get_args(field.annotation) for name, field in section.model_fields.items()}
    return next(f"{name}: {values[0]}" for name, values in literals.items() if [type(value) for value in values] == [str])


def _homes(section: type[Section], key: str, place: str = "") -> Iterator[str]:
    """The places under `section` where `key` is an option."""
    for name, field in section.model_fields.items():
        if name == key:
            yield place or "the top level"
        path, members = f"{place}.{name}" if place else name, sections_in(field.annotation)
        for member in members:
            yield from _homes(member, key, f"{path} with {tag(member)}" if len(members) > 1 else path)


def suggestion(root: type[Section], owner: type[Section], key: str) -> str:
    """What to write instead of the unknown `key` in a section of class `owner`."""
    if key in _REPLACED:
        return _REPLACED[key]
    known = list(owner.model_fields)
    if homes := list(dict.fromkeys(_homes(root, key))):
        return f"{key} belongs in {' or '.join(homes[:3])}"
    nearest = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.5)
    if nearest:
        return f"did you mean {nearest[0]}?"
    everywhere = {path.rsplit(".", 1)[-1]: path for path in option_paths(root)}
    nearest = difflib.get_close_matches(key.lower(), list(everywhere), n=1, cutoff=0.75)
    if nearest:
        return f"did you mean {everywhere[nearest[0]]}?"
    return f"the keys here are {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
