"""baton.local.devices: every service that is started has GPUs of its own, or the run does not start."""

from typing import Any

import pytest

from baton.config import ConfigError, RunConfig
from baton.local.devices import machine_gpus, place


def run(policy: dict[str, Any] | None = None, trainer: dict[str, Any] | None = None, **services: Any) -> RunConfig:
    return RunConfig.from_mapping({"models": {"policy": policy or {}, "ppo_policy": trainer or {}}, "services": services})


def test_trainer_and_replicas_get_one_gpu_for_each_of_their_processes():
    config = run({"tensor_model_parallel_size": 2, "num_replica": 2}, {"pipeline_model_parallel_size": 2})
    assert place(config, list("01234567")) == {"trainer": "0,1", "rollout-0": "2,3", "rollout-1": "4,5"}


def test_what_runs_on_the_cpu_or_elsewhere_gets_none():
    assert place(run({"device": "cpu"}), ["0"]) == {"trainer": "0", "rollout-0": ""}
    assert place(run(trainer_address="10.0.0.1:50051"), ["3"]) == {"rollout-0": "3"}
    assert place(run(coordinator_address="10.0.0.1:50051"), ["3"]) == {}


def test_a_machine_without_gpus_leaves_the_choice_to_the_services():
    assert place(run(), []) == {}


def test_too_few_gpus_are_refused_with_who_needs_how_many():
    with pytest.raises(ConfigError, match=r"needs 3 GPUs \(trainer 2, rollout-0 1\), but this machine has 2; lower"):
        place(run(trainer={"tensor_model_parallel_size": 2}), ["0", "1"])


@pytest.mark.parametrize(("visible", "expected"), [("2,5", ["2", "5"]), ("GPU-1f, GPU-2a", ["GPU-1f", "GPU-2a"]), ("", [])])
def test_gpus_that_the_user_made_visible_are_those_of_the_run(monkeypatch, visible: str, expected: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine_gpus() == expected
