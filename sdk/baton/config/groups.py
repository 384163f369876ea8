"""Trainer groups: which roles of a run share the processes of one torchrun group, and how these are laid out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from baton.config.problems import problem
from baton.config.trainable import MAIN_GROUP, ForwardConfig, TrainableConfig

if TYPE_CHECKING:
    from baton.config.run import RunConfig

Hosted = TrainableConfig | ForwardConfig


@dataclass(frozen=True, slots=True)
class TrainerGroup:
    """One torchrun group. Its first role says how its processes are laid out; the others have the same layout."""

    name: str
    roles: dict[str, Hosted]
    """In the order of the run file's schema, which is that of training: ppo_policy before ppo_value."""

    @property
    def leader(self) -> Hosted:
        """The role whose sizes, device and threads are the group's."""
        return next(iter(self.roles.values()))

    @property
    def data_parallel_size(self) -> int:
        """Copies of each model."""
        leader = self.leader
        return leader.data_parallel_size if isinstance(leader, TrainableConfig) else leader.num_replica

    @property
    def world_size(self) -> int:
        """Processes: tensor x pipeline x data-parallel size."""
        return self.leader.tensor_model_parallel_size * self.leader.pipeline_model_parallel_size * self.data_parallel_size


def service_name(group: str) -> str:
    """What a group's process is called in records and logs."""
    return group if group == MAIN_GROUP else f"{MAIN_GROUP}-{group}"


def trainer_groups(run: RunConfig) -> dict[str, TrainerGroup]:
    """The run's groups by name, that of ppo_policy first. A role's `dtype` is `RunConfig.dtype_name`."""
    members: dict[str, dict[str, Hosted]] = {}
    for name, role in run.models.roles().items():
        if isinstance(role, Hosted):
            found = role.model_copy(update={"dtype": run.dtype_name(name)})
            members.setdefault(role.group, {})[name] = found
    return {group: TrainerGroup(group, roles) for group, roles in members.items()}


def group_problems(run: RunConfig) -> Iterator[str]:
    """One line for each rule about trainer groups that `run` breaks."""
    models, groups = run.models, trainer_groups(run)
    if models.value and models.ppo_value and models.value.group != MAIN_GROUP:
        yield problem(
            "models.value.group", models.value.group,
            f"must be {MAIN_GROUP}: value is models.ppo_value's own model, evaluated where that is trained",
            "leave it out",
        )  # fmt: skip
    if models.value and models.ppo_value and models.value.model not in (None, models.ppo_value.model or models.value.model):
        yield problem(
            "models.value.model", models.value.model,
            f"must be the model of models.ppo_value ({models.ppo_value.model}), whose weights value has",
            "leave it out",
        )  # fmt: skip
    if models.value and models.ppo_value and run.dtype_name("value") != models.ppo_value.dtype:
        yield problem(
            "models.value.dtype", models.value.dtype,
            f"must be that of models.ppo_value ({models.ppo_value.dtype}), whose weights value has", "leave it out",
        )  # fmt: skip
    for group in groups.values():
        yield from _layouts(group)
    for name in run.services.group_addresses:
        path = f"services.group_addresses.{name}"
        if name == MAIN_GROUP:
            yield problem(path, name, "has an option of its own", "set services.trainer_address instead")
        elif name not in groups:
            yield problem(path, name, f"must name a group of the run's roles, which are {', '.join(groups)}", "remove it")


def _layouts(group: TrainerGroup) -> Iterator[str]:
    """A size or device that a role does not set is its group's; one that it sets must be."""
    leading = next(iter(group.roles))
    for name, role in list(group.roles.items())[1:]:
        copies = "data_parallel_size" if isinstance(role, TrainableConfig) else "num_replica"
        sizes = {
            "tensor_model_parallel_size": group.leader.tensor_model_parallel_size,
            "pipeline_model_parallel_size": group.leader.pipeline_model_parallel_size,
            copies: group.data_parallel_size,
            "device": group.leader.device,
        }
        for option, expected in sizes.items():
            chosen = option in role.model_fields_set or (option == copies and role.num_gpu)
            if chosen and getattr(role, option) != expected:
                apart = f", or put models.{name} into a group of its own" if isinstance(role, ForwardConfig) else ""
                yield problem(
                    f"models.{name}.{option}", getattr(role, option),
                    f"must be {expected}, as for models.{leading}: both are in group {group.name}, and share its processes",
                    f"leave it out{apart}",
                )  # fmt: skip
