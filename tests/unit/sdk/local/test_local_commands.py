"""baton.local.commands: each service is started with exactly these words."""

import sys
from pathlib import Path

import pytest

from baton.config import RunConfig
from baton.local import commands

RUN, READY = Path("/r/run.yaml"), Path("/r/ready/x.json")
CONFIG = RunConfig.from_mapping(
    {
        "models": {"policy": {}, "ppo_policy": {"tensor_model_parallel_size": 2, "data_parallel_size": 2}},
        "runtime": {"train_global_batch_size": 4},
        "services": {"rollout_port": 7100, "openai_port": 7300, "trainer_port": 7200},
    }
)
COMMON = ["--run-file", "/r/run.yaml", "--listen"]


def buffer_listens_on(**services: object) -> str:
    config = RunConfig.from_mapping({"models": {"policy": {}, "reward": {"model": "r", "group": "g"}}, "services": services})
    command = commands.buffer_command(config, RUN, READY, "redis://127.0.0.1:1/0")
    listen = command.pop(6)
    ready = ["--ready-file", str(READY), "--store", "redis://127.0.0.1:1/0"]
    assert command == [sys.executable, "-m", "services.buffer", *COMMON, *ready]
    return listen


@pytest.mark.parametrize(
    ("services", "listen"),
    [
        ({}, "127.0.0.1:0"),
        ({"buffer_port": 7400}, "127.0.0.1:7400"),
        ({"host": "10.0.0.1"}, "10.0.0.1:0"),
        ({"trainer_address": "10.0.0.2:1"}, "127.0.0.1:0"),
        ({"group_addresses": {"g": "10.0.0.2:1"}}, "127.0.0.1:0"),
    ],
)
def test_the_buffer_gets_its_store_and_listens_where_the_run_file_says(services, listen):
    assert buffer_listens_on(**services) == listen


def test_replica_i_listens_on_the_first_port_plus_i():
    command = commands.rollout_command(CONFIG, RUN, READY, 2)
    ready = ["--ready-file", str(READY), "--replica", "2"]
    openai = ["--openai-listen", "127.0.0.1:7302"]
    assert command == [sys.executable, "-m", "services.rollout", *COMMON, "127.0.0.1:7102", *ready, *openai]


def test_torchrun_starts_one_process_for_each_rank_and_meets_on_loopback():
    command = commands.trainer_command(CONFIG, RUN, READY, CONFIG.trainer_groups()["trainer"])
    port = command[command.index("--master-port") + 1]
    assert int(port) > 0
    assert command == [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "4",
        "--master-addr", "127.0.0.1", "--master-port", port,
        "-m", "services.trainer", *COMMON, "127.0.0.1:7200", "--ready-file", str(READY),
    ]  # fmt: skip


def test_a_further_trainer_group_is_told_its_name_and_takes_any_port():
    reward = {"model": "r", "group": "scorers", "tensor_model_parallel_size": 2}
    config = RunConfig.from_mapping({"models": {"policy": {}, "reward": reward}, "services": {"trainer_port": 7200}})
    command = commands.trainer_command(config, RUN, READY, config.trainer_groups()["scorers"])
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[-7:] == [*COMMON, "127.0.0.1:0", "--ready-file", str(READY), "--group", "scorers"][-7:]


def test_a_replica_on_static_batches_has_a_process_for_each_rank():
    policy = {"generator": "megatron", "tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    config = RunConfig.from_mapping({"models": {"policy": policy}, "services": {"rollout_port": 7100}})
    command = commands.rollout_command(config, RUN, READY, 1)
    assert command[: command.index("--master-addr")] == [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "4",
    ]  # fmt: skip
    assert command[command.index("--master-port") + 2 :] == [
        "-m", "services.static_rollout", *COMMON, "127.0.0.1:7101", "--ready-file", str(READY), "--replica", "1",
    ]  # fmt: skip


def test_the_coordinator_is_told_where_everybody_is():
    command = commands.coordinator_command(
        CONFIG, RUN, READY, app="my.program:engine", output_dir=Path("/r"),
        buffer="b:1", trainers={"trainer": "t:2", "scorers": "s:5"}, rollouts=["r:3", "r:4"],
    )  # fmt: skip
    assert command == [
        sys.executable, "-m", "services.coordinator", *COMMON, "127.0.0.1:0", "--ready-file", str(READY),
        "--buffer", "b:1", "--trainer", "t:2", "--output-dir", "/r", "--trainer-group", "scorers=s:5",
        "--rollout", "r:3", "--rollout", "r:4",
        "--app", "my.program:engine",
    ]  # fmt: skip


def test_a_thread_limit_is_set_before_libraries_are_loaded():
    assert commands.thread_environment(2) == {"OMP_NUM_THREADS": "2"}
    assert commands.thread_environment(None) == {}
