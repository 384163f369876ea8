"""Older names of sections and options that are still read, with a warning."""

import warnings
from typing import Any

from baton.config.problems import config_error, problem

# Old name of an option of any model -> its name today.
_RENAMED = {
    "num_device": "num_gpu",
    "moe_expert_model_parallel_size": "expert_model_parallel_size",
}

# Option that used to be the policy's -> it is `runtime`'s today, because prompts are repeated before the
# rollout.
_MOVED_TO_RUNTIME = ("num_inference_per_prompt", "drop_last")


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is an old name; write {new}", FutureWarning, stacklevel=5)


def _move(source: dict[str, Any], old: str, target: dict[str, Any], new: str, paths: tuple[str, str]) -> None:
    """Moves `source[old]` to `target[new]`; both present with different values is an error."""
    if old not in source:
        return
    value = source.pop(old)
    if new in target and target[new] != value:
        rule = f"must not differ from {paths[1]}, whose old name it is"
        raise config_error([problem(paths[0], value, rule, f"remove {paths[0]}")])
    _warn(*paths)
    target[new] = value


def rename_sections(tree: dict[str, Any]) -> None:
    """Renames `rlhf` to `runtime` in the tree of a run file, in place."""
    _move(tree, "rlhf", tree, "runtime", ("rlhf", "runtime"))


def rename_options(tree: dict[str, Any]) -> None:
    """Renames the old options of all models in the tree of a run file, in place."""
    models = tree.get("models")
    for name, section in models.items() if isinstance(models, dict) else ():
        if not isinstance(section, dict):
            continue
        for old, new in _RENAMED.items():
            _move(section, old, section, new, (f"models.{name}.{old}", f"models.{name}.{new}"))
        for option in _MOVED_TO_RUNTIME if name == "policy" else ():
            if option in section and isinstance(runtime := tree.setdefault("runtime", {}), dict):
                _move(section, option, runtime, option, (f"models.policy.{option}", f"runtime.{option}"))
