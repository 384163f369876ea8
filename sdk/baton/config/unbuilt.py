"""The options that load but that no service carries out yet. A run that sets one is refused: it would be another run.

Each goes from here when the part that carries it out arrives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from baton.config.problems import problem

if TYPE_CHECKING:
    from baton.config.base import Section
    from baton.config.run import RunConfig

UNBUILT_OPTIONS = {
    "models.*": (
        "expert_model_parallel_size",
    ),
    "models.policy": ("load",),
    "models.ppo_policy": ("batch_generation", "trust_remote_code"),
    "models.reference": ("batch_generation",),
    "models.value": ("batch_generation",),
    "models.reward": ("batch_generation",),
    "models.ppo_value": ("batch_generation",),
}  # fmt: skip


def unbuilt_problems(run: RunConfig) -> Iterator[str]:
    """One line for each option that differs from its default but would have no effect."""
    sections: dict[str, Section] = {"runtime": run.runtime}
    sections |= {f"models.{name}": role for name, role in run.models.roles().items()}
    for path, section in sections.items():
        names = UNBUILT_OPTIONS.get(path, ()) + (UNBUILT_OPTIONS["models.*"] if path.startswith("models.") else ())
        for name in names:
            if name not in section.model_fields_set:
                continue
            value, default = getattr(section, name), type(section).model_fields[name].get_default()
            if value != default and not _is_off(value):
                yield problem(f"{path}.{name}", value, "is not carried out by any service yet", "leave it out")


def _is_off(value: object) -> bool:
    """Whether a section's own switch is off, as in `batch_generation: {ranking: False}`."""
    return hasattr(value, "ranking") and not (value.ranking or value.min_prompt_length)
