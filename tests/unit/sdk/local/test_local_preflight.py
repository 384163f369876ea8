"""baton.local.preflight: what is known to be wrong is said before any process starts."""

import socket
import sys
from contextlib import nullcontext

import pytest

from baton.config import RunConfig
from baton.errors import ConfigError
from baton.local import preflight

RUNTIME = {"sample_per_episode": 8, "num_inference_per_prompt": 4}


def run(**sections) -> RunConfig:
    return RunConfig.from_mapping({"runtime": RUNTIME, "models": {"policy": {}}, **sections})


def test_a_run_file_of_defaults_passes():
    preflight.check(run(), app=None)


@pytest.mark.parametrize("name", ["/no/such/model", "./no_such", "a/b/c"])
def test_a_model_directory_that_does_not_exist_is_named_with_its_option(name):
    with pytest.raises(ConfigError, match=rf"models.policy.model: got '{name}'; must be a directory that exists"):
        preflight.check(run(models={"policy": {"model": name}}), app=None)


def test_an_adapter_to_start_from_that_does_not_exist_is_named_before_a_trainer_starts():
    lora = {"enable_lora": True, "load": "/no/such/adapter"}
    models = {"policy": {}, "ppo_policy": {"lora": lora}}
    with pytest.raises(ConfigError, match=r"models\.ppo_policy\.lora\.load: got '/no/such/adapter'; must be a directory"):
        preflight.check(run(models=models), app=None)
    services = {"trainer_address": "gpu-host:1", "buffer_address": "store-host:4"}
    preflight.check(run(models=models, services=services), app=None)


ELSEWHERE = {
    "trainer_address": "gpu-host:1", "rollout_addresses": ["gpu-host:2"], "group_addresses": {"scorers": "gpu-host:3"},
}  # fmt: skip
SCORED = {"policy": {}, "reference": {"group": "scorers"}}


@pytest.mark.parametrize(
    ("services", "role", "option"),
    [
        ({"coordinator_address": "c:1"}, "policy", "model"),
        ({"coordinator_address": "c:1"}, "ppo_policy", "load"),
        (ELSEWHERE, "policy", "model"),
        (ELSEWHERE, "reference", "tokenizer"),
        ({"trainer_address": "gpu-host:1"}, "ppo_policy", "load"),
        ({"group_addresses": {"scorers": "gpu-host:3"}}, "reference", "model"),
    ],
)
def test_directories_of_services_that_run_elsewhere_do_not_matter(services, role, option):
    services = {"buffer_address": "store-host:4"} | services
    preflight.check(run(models=SCORED | {role: SCORED.get(role, {}) | {option: "/no/such"}}, services=services), app=None)


@pytest.mark.parametrize(
    ("here", "role"),
    [*((option, "policy") for option in ELSEWHERE), ("group_addresses", "reference")],
)
def test_one_service_that_is_started_here_needs_the_directories_that_it_loads(here, role):
    services = {option: value for option, value in ELSEWHERE.items() if option != here}
    config = run(models=SCORED | {role: SCORED[role] | {"model": "/no/such"}}, services=services)
    with pytest.raises(ConfigError, match=rf"models.{role}.model: got '/no/such'; must be a directory that exists"):
        preflight.check(config, app=None)


@pytest.mark.parametrize("sections", [{"prompts": {"source": "jsonl", "path": "none.jsonl"}}, {"data_path": "none.jsonl"}])
def test_a_file_of_prompts_that_does_not_exist_is_named_before_models_are_loaded(sections, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = run(**sections) if "prompts" in sections else run(runtime=RUNTIME | sections)
    with pytest.raises(ConfigError, match=rf"prompts.path: got 'none.jsonl'; there is no such file in {tmp_path}"):
        preflight.check(config, app=None)
    (tmp_path / "none.jsonl").write_text("{}")
    preflight.check(config, app=None)


def test_a_file_of_prompts_on_the_coordinators_machine_does_not_matter():
    services = {"coordinator_address": "c:1"}
    preflight.check(run(prompts={"source": "jsonl", "path": "/no/such.jsonl"}, services=services), app=None)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B", "smollm2-135m-instruct"])
def test_a_hub_id_is_not_taken_for_a_path(name):
    preflight.check(run(models={"policy": {"model": name}}), app=None)


@pytest.mark.parametrize(
    ("sections", "option"),
    [
        ({"services": {"trainer_port": 0}}, "services.trainer_port"),
        ({"services": {"rest_port": 0}}, "services.rest_port"),
        ({"store": {"port": 0}}, "store.port"),
    ],
)
def test_a_port_that_is_taken_is_named_with_its_option(sections, option):
    section, name = option.split(".")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sections[section][name] = port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"{option}: port {port} is taken; .* set another port"):
            preflight.check(run(**sections), app=None)


def test_the_port_of_every_replica_is_checked():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = run(models={"policy": {"num_replica": 2}}, services={"rollout_port": port - 1})
        with pytest.raises(ConfigError, match=rf"services.rollout_port: port {port} is taken"):
            preflight.check(config, app=None)


def test_ports_of_services_that_run_elsewhere_do_not_matter():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        services = {"trainer_port": port, "trainer_address": "gpu-host:7000", "buffer_address": "store-host:4"}
        preflight.check(run(services=services), app=None)


def test_a_host_that_is_not_this_machine_is_named():
    with pytest.raises(ConfigError, match=r"services.host: cannot listen on 192.0.2.1:0"):
        preflight.check(run(services={"host": "192.0.2.1"}), app=None)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize(
    ("services", "message"),
    [
        ({"rollout_addresses": ["gpu-host:2"]}, "gpu-host:2 can reach this machine, to fetch weights from the trainer"),
        ({"trainer_address": "gpu-host:1"}, "gpu-host:1 can reach this machine, to lease samples from the buffer"),
        ({"group_addresses": {"scorers": "gpu-host:3"}}, "gpu-host:3 can reach this machine, to lease samples"),
    ],
)
def test_a_host_that_services_elsewhere_cannot_reach_is_named_before_models_are_loaded(host, services, message):
    with pytest.raises(ConfigError, match=rf"services.host: got '{host}'; must be an address by which {message}"):
        preflight.check(run(models=SCORED, services=services | {"host": host}), app=None)


def test_listening_on_all_addresses_does_not_tell_a_trainer_elsewhere_which_one_to_ask():
    services = {"trainer_address": "gpu-host:1", "host": "0.0.0.0"}
    with pytest.raises(ConfigError, match=r"services.host: got '0.0.0.0'; must be an address by which gpu-host:1"):
        preflight.check(run(services=services), app=None)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1"])
def test_services_that_run_on_this_machine_already_reach_it(address):
    preflight.check(run(services={"trainer_address": address, "rollout_addresses": [address]}), app=None)


@pytest.mark.parametrize(
    ("program", "runtime", "message"),
    [
        (None, {}, "relay is on and needs a function"),
        ("engine = Engine()", {}, "relay is on and needs a function"),
        ("engine = Engine()\nengine.set_relay_sample_fn(len)", {}, None),
        (None, {"relay_sample_fn": "concat"}, None),
        ("raise SystemError('imported')", {"relay_sample_fn": "concat"}, None),
    ],
    ids=["no program", "a program without one", "a program with one", "a built-in", "a program that is not looked at"],
)
def test_relay_needs_a_function_from_the_run_file_or_the_program(tmp_path, monkeypatch, program, runtime, message):
    name = f"relay_program_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(f"from baton.engine import Engine\n{program}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    config = run(runtime=RUNTIME | {"max_relay_episode": 2} | runtime)
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        preflight.check(config, app=program and f"{name}:engine")
