"""Which of this machine's GPUs each started service gets, as CUDA_VISIBLE_DEVICES of its processes."""

import os
from collections.abc import Sequence
from pathlib import Path

from baton.config import ConfigError, RunConfig
from baton.config.groups import service_name

VARIABLE = "CUDA_VISIBLE_DEVICES"


def machine_gpus() -> list[str]:
    """The GPUs that a run may use, as CUDA_VISIBLE_DEVICES names them; if that is set, those in it."""
    if (visible := os.environ.get(VARIABLE)) is not None:
        return [name for part in visible.split(",") if (name := part.strip())]
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def place(config: RunConfig, gpus: Sequence[str]) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES by service (`trainer`, `rollout-0`, ...), each with GPUs of its own; empty without any GPU.

    Raises ConfigError if there are not enough.
    """
    if not gpus:
        return {}
    demands = _demands(config)
    if (needed := sum(demands.values())) > len(gpus):
        listed = ", ".join(f"{service} {count}" for service, count in demands.items() if count)
        raise ConfigError(
            f"the run needs {needed} GPUs ({listed}), but this machine has {len(gpus)}; lower the parallel sizes or "
            "models.policy.num_replica, or set models.policy.device or models.ppo_policy.device to cpu"
        )
    free = iter(gpus)
    return {service: ",".join(next(free) for _ in range(count)) for service, count in demands.items()}


def _demands(config: RunConfig) -> dict[str, int]:
    """GPUs by service that is started here: one for each of its processes, none if it runs on the CPU."""
    services, policy = config.services, config.models.policy
    demands: dict[str, int] = {}
    if services.coordinator_address:
        return demands
    for name, group in config.trainer_groups().items():
        if not services.address_of(name):
            demands[service_name(name)] = 0 if group.leader.device == "cpu" else group.world_size
    if not services.rollout_addresses:
        each = 0 if policy.device == "cpu" else policy.gpus_per_replica
        demands |= {f"rollout-{replica}": each for replica in range(config.rollout_replicas)}
    return demands
