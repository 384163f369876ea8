"""deploy/: what its files name exists, agrees, and is understood by who gets it. No network and no container engine."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import typer
import yaml

from baton.cli import app
from baton.config import load_run
from baton.config.services import StoreConfig
from baton.local.store import server_command

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "deploy" / "compose.yaml"
COMPOSE = yaml.safe_load(COMPOSE_FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BUILT = sorted(name for name, service in SERVICES.items() if "build" in service)
GRPC = sorted(name for name in BUILT if "services." in " ".join(SERVICES[name]["command"]) and name != "run")
DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"), key=lambda path: path.name)
HOME = PurePosixPath("/baton")
"""The directory that a container's command starts in."""


def words(name: str) -> list[str]:
    return SERVICES[name]["command"]


def given(name: str, option: str) -> list[str]:
    """The values of an option in a service's command."""
    return [value for before, value in pairwise(words(name)) if before == option]


def port(name: str) -> int:
    """Where the others reach a service."""
    return 6379 if name == "store" else int(given(name, "--listen")[0].rpartition(":")[2])


def spoken_to(name: str) -> Iterator[tuple[str, int]]:
    """The services that a command names as HOST:PORT, with the port that it expects them at."""
    for other in SERVICES:
        for found in re.findall(rf"(?:^|[/=@]){other}:([0-9]+)", "\n".join(words(name)), re.MULTILINE):
            yield other, int(found)


def waited_for(name: str) -> set[str]:
    """The services that are healthy before this one starts."""
    direct = SERVICES[name].get("depends_on", {})
    assert all(condition == {"condition": "service_healthy"} for condition in direct.values())
    return set(direct).union(*map(waited_for, direct))


def named_volumes(name: str) -> dict[str, PurePosixPath]:
    """Volume -> path in the container; files of the host are no volumes."""
    mounts = (mount.split(":") for mount in SERVICES[name].get("volumes", ()))
    return {source: PurePosixPath(target) for source, target, *_ in mounts if not source.startswith(".")}


def run_file_of(name: str) -> Path:
    """The repository's file that a service loads, by the mount that shows it to the container."""
    command = words(name)
    shown = HOME / (command[command.index("run") + 1] if name == "run" else given(name, "--run-file")[0])
    for mount in SERVICES[name]["volumes"]:
        source, target, *_ = mount.split(":")
        if shown.is_relative_to(target):
            return COMPOSE_FILE.parent / source / shown.relative_to(target)
    raise AssertionError(f"{name} loads {shown}, which nothing mounts")


def directives(dockerfile: Path, name: str) -> list[str]:
    """The arguments of every directive of that name, continued lines joined."""
    lines = dockerfile.read_text().replace("\\\n", " ").splitlines()
    return [line.partition(" ")[2] for line in lines if line.startswith(f"{name} ")]


def test_compose_accepts_the_file():
    if not (compose := shutil.which("docker-compose")):
        pytest.skip("docker-compose is not installed")
    done = subprocess.run([compose, "-f", str(COMPOSE_FILE), "config", "-q"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", BUILT)
def test_a_service_is_built_from_the_repository_by_the_dockerfile_that_its_image_is_named_after(name):
    build = SERVICES[name]["build"]
    assert (COMPOSE_FILE.parent / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] in DOCKERFILES
    assert SERVICES[name]["image"] == f"baton-{Path(build['dockerfile']).stem}"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_a_dockerfile_copies_what_exists_and_installs_what_it_copied(dockerfile):
    copies = [line.split() for line in directives(dockerfile, "COPY")]
    for source, _ in copies:
        assert (ROOT / source).exists(), source
    assert [f"requirements/{dockerfile.stem}.txt", "/src/requirements/"] in copies
    steps = "\n".join(directives(dockerfile, "RUN"))
    assert f"-r /src/requirements/{dockerfile.stem}.txt" in steps
    assert steps.count("pip install") == steps.count("--no-deps")  # everything that is installed is pinned
    assert "/src/sdk /src" in steps
    assert directives(dockerfile, "USER") == ["baton"]
    assert directives(dockerfile, "WORKDIR") == [str(HOME)]


@pytest.mark.parametrize("name", BUILT)
def test_a_volume_is_mounted_where_the_image_has_a_directory_of_its_user(name):
    dockerfile = ROOT / SERVICES[name]["build"]["dockerfile"]
    made = re.search(r"install -d -o baton -g baton (.*)", "\n".join(directives(dockerfile, "RUN")))[1].split()
    for volume, target in named_volumes(name).items():
        assert volume in COMPOSE["volumes"]
        assert str(target) in made


def test_everybody_sees_the_runs_and_the_models_under_one_path():
    for name in ("trainer", "coordinator", "run"):
        output_dir = load_run(run_file_of(name)).runtime.output_dir
        assert named_volumes(name)["runs"] == HOME / output_dir
    for name in ("trainer", "rollout"):
        environment = directives(ROOT / SERVICES[name]["build"]["dockerfile"], "ENV")[0].split()
        assert f"BATON_CACHE={named_volumes(name)['models']}" in environment


def test_the_store_is_started_as_the_command_line_starts_its_own(tmp_path):
    own = iter(server_command(StoreConfig(), tmp_path, 1)[1:])
    expected = dict(zip(own, own, strict=True))
    for place in ("--bind", "--port", "--dir", "--daemonize"):
        del expected[place]
    theirs = iter(words("store")[1:])
    assert dict(zip(theirs, theirs, strict=True)) == expected


@pytest.mark.parametrize("name", GRPC)
def test_a_service_is_given_a_command_line_that_it_takes(name):
    command, absent = words(name), "absent.yaml"
    if name == "trainer":
        from torch.distributed.run import parse_args

        launch = parse_args(command[command.index("torch.distributed.run") + 1 :])
        assert (launch.module, launch.training_script) == (True, "services.trainer")
        command = ["python", "-m", launch.training_script, *launch.training_script_args]
    assert command[:2] == ["python", "-m"]
    # the last --run-file counts; a command line that is not understood would end with 2
    done = subprocess.run(
        [sys.executable, *command[1:], "--run-file", absent], capture_output=True, text=True, timeout=200, cwd=ROOT
    )
    assert done.returncode == 1, done.stderr
    assert f"{absent}: cannot be read" in done.stderr


def test_the_run_is_started_by_a_command_line_that_baton_takes():
    program, command, *arguments = words("run")
    assert program == "baton"
    taken = typer.main.get_command(app).commands[command].make_context(command, arguments)
    assert taken.params["run_file"] == Path("deploy/runs/quickstart.yaml")
    assert load_run(run_file_of("run"), taken.params["overrides"]).services.coordinator_address == "coordinator:50050"


@pytest.mark.parametrize("name", [*GRPC, "run"])
def test_a_service_loads_a_run_file_of_the_repository_with_its_overrides(name):
    load_run(run_file_of(name), given(name, "--set")).require_startable()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_spoken_to_at_its_port_once_it_is_healthy(name):
    found = list(spoken_to(name))
    for other, number in found:
        assert number == port(other), f"{name} looks for {other} at {number}"
        assert other in waited_for(name), f"{name} does not wait for {other}"
    talkers = {"buffer": {"store"}, "coordinator": {"buffer", "rollout", "trainer"}, "run": {"coordinator"}}
    assert {other for other, _ in found} == talkers.get(name, set())


@pytest.mark.parametrize("name", GRPC)
def test_the_health_of_a_service_is_asked_at_its_port(name):
    check = SERVICES[name]["healthcheck"]
    assert check["test"] == ["CMD", "python", "-m", "services.common.health_check", f"127.0.0.1:{port(name)}"]
    assert check["start_period"] == f"{load_run(run_file_of(name)).deadlines.startup_s:g}s"


def test_the_command_lines_agree_with_the_run_file_on_how_many_there_are():
    models = load_run(run_file_of("trainer")).models
    assert given("trainer", "--nproc-per-node") == [str(models.ppo_policy.world_size)]
    assert len(given("coordinator", "--rollout")) == models.policy.replicas


def test_weights_are_sent_from_an_address_that_the_receivers_know():
    host = load_run(run_file_of("trainer"), given("trainer", "--set")).services.host
    assert host in SERVICES and SERVICES[host] is SERVICES["trainer"]


def test_only_the_pages_of_the_coordinator_are_published_and_on_loopback():
    rest = load_run(run_file_of("coordinator"), given("coordinator", "--set")).services.rest_port
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "coordinator": [f"127.0.0.1:{rest}:{rest}"]
    }


def test_only_what_the_run_can_go_on_with_is_started_again():
    assert {name for name, service in SERVICES.items() if service["restart"] != "no"} == {"store", "buffer", "rollout"}


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "runs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_run_file_loads_and_can_start(path):
    load_run(path).require_startable()


def test_the_health_check_ends_with_0_only_for_a_service_that_serves(buffer):
    check = [sys.executable, "-m", "services.common.health_check"]
    assert subprocess.run([*check, buffer.address], timeout=120).returncode == 0
    closed = subprocess.run([*check, "127.0.0.1:1"], timeout=120, capture_output=True, text=True)
    assert closed.returncode == 1
    assert "127.0.0.1:1 said within 3 s that it is serving" in closed.stderr
