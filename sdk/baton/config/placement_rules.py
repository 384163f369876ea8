"""The rules about where things run: devices, parallel sizes, colocation groups, ports and addresses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from baton.config.problems import problem
from baton.config.trainable import TrainableConfig

if TYPE_CHECKING:
    from baton.config.roles import RoleConfig
    from baton.config.run import RunConfig


def placement_problems(run: RunConfig) -> Iterator[str]:
    """One line for each rule about devices and parallel sizes that `run` breaks."""
    for name, role in run.models.roles().items():
        path = f"models.{name}"
        yield from _devices(path, role)
        yield from _copies(path, role)
        if isinstance(role, TrainableConfig):
            yield from _trainer_sizes(path, role)
    yield from _colocation(run)


def _devices(path: str, role: RoleConfig) -> Iterator[str]:
    if role.device == "cpu" and role.num_gpu:
        yield problem(f"{path}.num_gpu", role.num_gpu, "must be 0 when device is cpu", "remove it, or the device")
    if role.gpu_per_process is not None and role.num_gpu and role.gpu_per_process > role.num_gpu:
        yield problem(
            f"{path}.gpu_per_process",
            role.gpu_per_process,
            f"must be at most num_gpu ({role.num_gpu})",
            "remove it",
        )
    if role.cpu_per_process is not None and role.num_cpu and role.cpu_per_process > role.num_cpu:
        yield problem(
            f"{path}.cpu_per_process",
            role.cpu_per_process,
            f"must be at most num_cpu ({role.num_cpu})",
            "remove it",
        )
    if role.zero_size > 1 and role.gpus_per_replica > 1:
        yield problem(f"{path}.zero_size", role.zero_size, "must be 1 when a parallel size is more than 1", "remove it")
    if role.zero_size > 1 and role.num_gpu % role.zero_size:
        yield problem(f"{path}.zero_size", role.zero_size, f"must divide num_gpu ({role.num_gpu})", "remove it")


def _copies(path: str, role: RoleConfig) -> Iterator[str]:
    """The GPUs must be used up by whole copies of the model."""
    if isinstance(role, TrainableConfig):
        per_copy = role.tensor_model_parallel_size * role.pipeline_model_parallel_size
        copies, option, sizes = role.data_parallel_size, "data_parallel_size", "tensor x pipeline"
    else:
        per_copy, copies, option = role.gpus_per_replica, role.num_replica, "num_replica"
        sizes = "tensor x pipeline x expert"
    if not role.num_gpu:
        return
    if role.num_gpu % per_copy:
        yield problem(
            f"{path}.num_gpu",
            role.num_gpu,
            f"must be a multiple of {sizes} parallel size ({per_copy})",
            f"write {-(-role.num_gpu // per_copy) * per_copy}",
        )
    elif copies != role.num_gpu // per_copy:
        yield problem(
            f"{path}.{option}",
            copies,
            f"must be num_gpu / ({sizes} parallel size), which is {role.num_gpu} / {per_copy}",
            f"remove it, or write {role.num_gpu // per_copy}",
        )


def _trainer_sizes(path: str, role: TrainableConfig) -> Iterator[str]:
    if role.data_parallel_size % role.expert_model_parallel_size:
        yield problem(
            f"{path}.expert_model_parallel_size",
            role.expert_model_parallel_size,
            f"must divide the data-parallel size ({role.data_parallel_size})",
            "lower it, or add data-parallel copies",
        )
    if role.sequence_parallel and role.tensor_model_parallel_size == 1:
        yield problem(
            f"{path}.sequence_parallel",
            True,
            "needs a tensor_model_parallel_size of at least 2",
            "remove it, or raise the size",
        )
    if role.recompute_num_layers and role.recompute_granularity != "full":
        yield problem(
            f"{path}.recompute_num_layers",
            role.recompute_num_layers,
            "counts the layers that recompute_granularity: full computes again",
            "remove it, or set recompute_granularity to full",
        )


def _colocation(run: RunConfig) -> Iterator[str]:
    """Models are in one list at most, and those that have their processes in common not in different ones."""
    list_of: dict[str, int] = {}
    known = type(run.models).model_fields
    for index, names in enumerate(run.runtime.colocation):
        for name in (part.strip() for part in names.split(",")):
            path = f"runtime.colocation.{index}"
            if name not in known:
                yield problem(path, names, f"must name models, which are {', '.join(known)}", f"remove {name!r}")
            elif name in list_of:
                yield problem(path, names, f"must not name {name} again: a model is in one list at most", "remove it")
            list_of.setdefault(name, index)
    for group in run.trainer_groups().values():
        listed = [name for name in group.roles if name in list_of]
        for name in listed[1:]:
            if list_of[name] != list_of[listed[0]]:
                yield problem(
                    f"runtime.colocation.{list_of[name]}",
                    run.runtime.colocation[list_of[name]],
                    f"must not name {name}: its processes are those of {listed[0]}, which is in another list",
                    f"move it there, or give models.{name} a group of its own",
                )


def service_problems(run: RunConfig) -> Iterator[str]:
    """One line for each rule about ports and addresses that `run` breaks."""
    services, replicas = run.services, run.models.policy.num_replica
    if services.rollout_addresses and len(services.rollout_addresses) != replicas:
        yield problem(
            "services.rollout_addresses",
            services.rollout_addresses,
            f"must have one address for each replica of models.policy ({replicas})",
            f"set models.policy.num_replica to {len(services.rollout_addresses)}, or correct the list",
        )
    if services.rollout_addresses and services.host == "0.0.0.0":
        yield problem(
            "services.host",
            services.host,
            "must be an address that the rollouts reach this machine by: they fetch weights from it",
            "write this machine's address or name",
        )
    for path, first in (("services.rollout_port", services.rollout_port), ("services.openai_port", services.openai_port)):
        if first and first + replicas - 1 > 65535:
            yield problem(
                path, first, f"must leave {replicas} ports below 65536, one for each replica",
                f"write at most {65536 - replicas}",
            )  # fmt: skip
    taken: dict[int, str] = {}
    for path, first, count in (
        ("services.buffer_port", services.buffer_port, 1),
        ("services.coordinator_port", services.coordinator_port, 1),
        ("services.rest_port", services.rest_port, 1),
        ("services.trainer_port", services.trainer_port, 1),
        ("services.rollout_port", services.rollout_port, replicas),
        ("services.openai_port", services.openai_port, replicas),
        ("store.port", run.store.port, 1),
    ):
        for port in range(first, first + count) if first else ():
            if port in taken:
                yield problem(path, first, f"must not need port {port}, which is {taken[port]}'s", "choose another")
                break
            taken[port] = path
