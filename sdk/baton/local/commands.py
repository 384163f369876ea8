"""The command line of each service, as the run file asks for it. The SDK knows services by their module names only."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from baton.config import RunConfig
from baton.config.groups import TrainerGroup
from baton.config.trainable import MAIN_GROUP
from baton.local.store import LOOPBACK, free_port


def _common(config: RunConfig, run_file: Path, port: int, ready_file: Path) -> list[str]:
    return ["--run-file", str(run_file), "--listen", f"{config.services.host}:{port}", "--ready-file", str(ready_file)]


def _torchrun(processes: int) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(processes),
        "--master-addr", LOOPBACK, "--master-port", str(free_port()),
    ]  # fmt: skip


def buffer_command(config: RunConfig, run_file: Path, ready_file: Path, store_url: str) -> list[str]:
    """The buffer, on the store at `store_url`."""
    arguments = _common(config, run_file, config.services.buffer_port, ready_file)
    return [sys.executable, "-m", "services.buffer", *arguments, "--store", store_url]


def rollout_command(config: RunConfig, run_file: Path, ready_file: Path, replica: int) -> list[str]:
    """Rollout replica `replica`: vLLM starts its own processes, static batches run under torchrun.

    It has a port of its own also if the run file leaves it open: one that is started again with the same command must be
    found where it was.
    """
    services, policy = config.services, config.models.policy
    port, openai_port = (
        first + replica if first else free_port(services.host) for first in (services.rollout_port, services.openai_port)
    )
    options = [*_common(config, run_file, port, ready_file), "--replica", str(replica)]
    if policy.generator == "megatron":
        return [*_torchrun(policy.tensor_model_parallel_size * policy.pipeline_model_parallel_size),
                "-m", "services.static_rollout", *options]  # fmt: skip
    openai = ["--openai-listen", f"{services.host}:{openai_port}"]
    return [sys.executable, "-m", "services.rollout", *options, *openai]


def trainer_command(config: RunConfig, run_file: Path, ready_file: Path, group: TrainerGroup) -> list[str]:
    """The ranks of a trainer group, under torchrun; rank 0 listens."""
    is_main = group.name == MAIN_GROUP
    options = _common(config, run_file, config.services.trainer_port if is_main else 0, ready_file)
    options += [] if is_main else ["--group", group.name]
    return [*_torchrun(group.world_size), "-m", "services.trainer", *options]


def coordinator_command(
    config: RunConfig, run_file: Path, ready_file: Path, *, app: str | None, output_dir: Path,
    buffer: str, trainers: Mapping[str, str], rollouts: Sequence[str],
) -> list[str]:  # fmt: skip
    """The coordinator, told where the others listen, trainers by group; `app` is the user's program as module:attribute."""
    command = [
        sys.executable, "-m", "services.coordinator",
        *_common(config, run_file, config.services.coordinator_port, ready_file),
        "--buffer", buffer, "--trainer", trainers[MAIN_GROUP], "--output-dir", str(output_dir),
    ]  # fmt: skip
    for group, address in trainers.items():
        command += ["--trainer-group", f"{group}={address}"] if group != MAIN_GROUP else []
    for address in rollouts:
        command += ["--rollout", address]
    return [*command, "--app", app] if app else command


def thread_environment(omp_threads: int | None) -> dict[str, str]:
    """Environment of a process that may use `omp_threads` CPU threads; libraries read it when they are loaded."""
    return {"OMP_NUM_THREADS": str(omp_threads)} if omp_threads else {}
