"""Which of this machine's GPUs each started service gets, as CUDA_VISIBLE_DEVICES of its processes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from baton.config import ConfigError, RunConfig
from baton.config.groups import service_name

VARIABLE = "CUDA_VISIBLE_DEVICES"


def machine_gpus(devices: Path = Path("/dev")) -> list[str]:
    """The GPUs that a run may use, as CUDA_VISIBLE_DEVICES names them; if that is set, those in it. CUDA counts from 0 those
    that it sees: in a container with one card, that may be `nvidia3`."""
    if (visible := os.environ.get(VARIABLE)) is not None:
        return [name for part in visible.split(",") if (name := part.strip())]
    return [str(number) for number, _ in enumerate(devices.glob("nvidia[0-9]*"))]


def place(config: RunConfig, gpus: Sequence[str]) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES by service (`trainer`, `rollout-0`, ...); empty without any GPU. Models of one list in
    `runtime.colocation` are on the same cards, from the first one on; the others have cards of their own.

    Raises ConfigError if there are not enough, or if the rollout shares cards and the run file does not say to what part.
    """
    if not gpus:
        return {}
    demands = _demands(config)
    pools = _pools(config, demands)
    if (needed := sum(size for size, _ in pools)) > len(gpus):
        listed = ", ".join(f"{service} {count}" for service, count in demands.items() if count)
        shared = ", with what runtime.colocation lets share them" if config.runtime.colocation else ""
        raise ConfigError(
            f"the run needs {needed} GPUs ({listed}{shared}), but this machine has {len(gpus)}; lower the parallel sizes or "
            "models.policy.num_replica, name models that may share GPUs in runtime.colocation, or set models.policy.device "
            "or models.ppo_policy.device to cpu"
        )
    placed, first = dict.fromkeys(demands, ""), 0
    for size, members in pools:
        for service, offset in members.items():
            start = first + offset
            placed[service] = ",".join(gpus[start : start + demands[service]])
        first += size
    _require_share(config, placed)
    return placed


def shared(placed: Mapping[str, str]) -> dict[str, list[str]]:
    """The services on each GPU that several share."""
    on: dict[str, list[str]] = {}
    for service, cards in placed.items():
        for card in filter(None, cards.split(",")):
            on.setdefault(card, []).append(service)
    return {card: services for card, services in on.items() if len(services) > 1}


def remarks(config: RunConfig, placed: Mapping[str, str]) -> list[str]:
    """What the user should know of GPUs that services share."""
    policy, lines = config.models.policy, []
    for card, services in shared(placed).items():
        takes = ""
        if engines := [service for service in services if _is_rollout(service)]:
            share = f"{policy.gpu_memory_utilization:.0%} of its memory" if policy.generator == "vllm" else "what it needs"
            takes = f": {engines[0]} takes {share}, the others have what is left"
        lines.append(f"{' and '.join(services)} share GPU {card}{takes}")
    return lines


def _is_rollout(service: str) -> bool:
    return service.startswith("rollout-")


def _require_share(config: RunConfig, placed: Mapping[str, str]) -> None:
    """Left out, the rollout's share would be nearly all, and the trainer would run out of memory in the middle of a run."""
    policy = config.models.policy
    if policy.generator != "vllm" or "gpu_memory_utilization" in policy.model_fields_set:
        return
    for card, services in shared(placed).items():
        if any(map(_is_rollout, services)):
            raise ConfigError(
                f"models.policy.gpu_memory_utilization: is missing; {' and '.join(services)} share GPU {card}, and it says "
                "how much of its memory the rollout takes; the others have what is left; add it, as 0.3"
            )


def _pools(config: RunConfig, demands: Mapping[str, int]) -> list[tuple[int, dict[str, int]]]:
    """Cards that belong together: how many, and each service's first one. Replicas come one after another."""
    lists = [{name.strip() for name in names.split(",")} for names in config.runtime.colocation]
    roles = {service_name(name): set(group.roles) for name, group in config.trainer_groups().items()}
    pools: dict[str | int, tuple[int, dict[str, int]]] = {}
    for service, count in demands.items():
        models = roles.get(service, {"policy"})
        key = next((index for index, names in enumerate(lists) if names & models), service)
        size, members = pools.get(key, (0, {}))
        offset = sum(demands[other] for other in members if _is_rollout(other)) if _is_rollout(service) else 0
        pools[key] = max(size, offset + count), members | {service: offset}
    return list(pools.values())


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
