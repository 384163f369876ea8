"""baton.local.devices: every service that is started has GPUs of its own, or the run does not start."""

from typing import Any

import pytest

from baton.config import ConfigError, RunConfig
from baton.local.devices import machine_gpus, place, remarks


def run(policy: dict[str, Any] | None = None, trainer: dict[str, Any] | None = None, **services: Any) -> RunConfig:
    return RunConfig.from_mapping({"models": {"policy": policy or {}, "ppo_policy": trainer or {}}, "services": services})


def colocated(*lists: str, policy: dict[str, Any] | None = None, **models: Any) -> RunConfig:
    models["policy"] = {"gpu_memory_utilization": 0.3} | (policy or {})
    return RunConfig.from_mapping({"runtime": {"colocation": list(lists)}, "models": models})


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


def test_models_of_one_colocation_list_are_on_the_same_gpus_from_the_first_one_on():
    assert place(colocated("policy,ppo_policy"), ["0"]) == {"trainer": "0", "rollout-0": "0"}
    sizes = {"tensor_model_parallel_size": 2, "num_replica": 2}
    split = colocated("policy, ppo_policy", policy=sizes, ppo_policy={"pipeline_model_parallel_size": 2})
    assert place(split, list("4567")) == {"trainer": "4,5", "rollout-0": "4,5", "rollout-1": "6,7"}


def test_models_in_no_list_or_another_one_keep_gpus_of_their_own():
    apart = {"reference": {"group": "scorers"}, "reward": {"model": "judge", "group": "judges"}}
    placed = place(colocated("reference,reward", "policy,ppo_policy", **apart), list("0123"))
    assert placed == {"trainer": "0", "rollout-0": "0", "trainer-scorers": "1", "trainer-judges": "1"}
    assert place(colocated("reference,ppo_policy", **apart), list("0123")) == {
        "trainer": "0", "trainer-scorers": "0", "trainer-judges": "1", "rollout-0": "2",
    }  # fmt: skip


def test_a_colocated_run_without_enough_gpus_is_refused():
    with pytest.raises(ConfigError, match=r"needs 2 GPUs \(trainer 1, rollout-0 1, rollout-1 1, with what"):
        place(colocated("policy,ppo_policy", policy={"num_replica": 2}), ["0"])


def test_the_share_of_a_rollout_beside_a_trainer_must_be_said():
    config = RunConfig.from_mapping({"runtime": {"colocation": ["policy,ppo_policy"]}, "models": {"policy": {}}})
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization: is missing; trainer and rollout-0 share GPU 0"):
        place(config, ["0"])
    assert place(config, []) == {}


def test_the_user_is_told_who_shares_a_gpu_and_how_much_of_it_the_rollout_takes():
    config = colocated("policy,ppo_policy")
    assert remarks(config, place(config, ["0"])) == [
        "trainer and rollout-0 share GPU 0: rollout-0 takes 30% of its memory, the others have what is left"
    ]
    assert remarks(run(), place(run(), ["0", "1"])) == []


def test_gpus_are_counted_as_cuda_counts_those_that_it_sees(tmp_path, monkeypatch) -> None:
    for name in ("nvidia3", "nvidia7", "nvidia-uvm", "nvidiactl"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine_gpus(tmp_path) == ["0", "1"]


@pytest.mark.parametrize(("visible", "expected"), [("2,5", ["2", "5"]), ("GPU-1f, GPU-2a", ["GPU-1f", "GPU-2a"]), ("", [])])
def test_gpus_that_the_user_made_visible_are_those_of_the_run(monkeypatch, visible: str, expected: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine_gpus() == expected
