"""What can be known to be wrong before any process starts."""

import errno
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from baton.config import ConfigError, RunConfig
from baton.config.task import JsonlPrompts
from baton.engine import Engine, load_engine
from baton.local import devices
from baton.local.store import LOOPBACK, find_server

_FOR_ITSELF = re.compile(r"^(localhost|127\.[\d.]+|::1)$")
"""Hosts by which a machine reaches itself alone."""
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


def check(config: RunConfig, *, app: str | None) -> None:
    """Raises ConfigError, one line for each problem, if the run cannot start on this machine.

    The user's program (module:attribute) is imported only if a relay function must come from it.
    """
    if sys.platform != "linux":
        raise ConfigError(f"baton starts services on Linux only, and this is {sys.platform}; use a Linux container")
    runtime, has_relay_sample_fn = config.runtime, False
    if app is not None and runtime.relay_enabled and runtime.relay_sample_fn is None:
        has_relay_sample_fn = load_app(app).relay_sample_fn is not None
    if config.services.coordinator_address is None:
        config.logging.require_installed()
    config.require_startable(has_relay_sample_fn=has_relay_sample_fn)
    problems = [
        *_missing_directories(config), *_missing_prompts(config), *_taken_ports(config), *_unreachable_host(config),
    ]  # fmt: skip
    if problems:
        raise ConfigError("\n".join(problems))
    devices.place(config, devices.machine_gpus())
    services = config.services
    if services.coordinator_address is None and services.buffer_address is None and config.store.url is None:
        find_server()


def load_app(app: str) -> Engine:
    """The user's program, found as the coordinator will find it: from the working directory on."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path[:0] = [folder]
    return load_engine(app)


def _is_path(name: str) -> bool:
    return name.startswith((".", "~")) or not _HUB_ID.match(name)


def _loads_here(config: RunConfig, role: str) -> bool:
    """Whether a service that is started here loads the model of `role`. The policy's is every trainer group's, too."""
    services = config.services
    if services.coordinator_address:
        return False
    here = [group for name, group in config.trainer_groups().items() if not services.address_of(name)]
    if role == "policy":
        return bool(here or (config.rollout_replicas and not services.rollout_addresses))
    return any(role in group.roles for group in here)


def _missing_directories(config: RunConfig) -> Iterator[str]:
    for role, model in config.models.roles().items():
        if not _loads_here(config, role):
            continue
        named = {option: getattr(model, option) for option in ("model", "tokenizer", "load")}
        named["lora.load"] = model.lora.load if model.lora.enable_lora else None
        for option, name in named.items():
            if name is None or (option in ("model", "tokenizer") and not _is_path(name)):
                continue
            if not Path(name).expanduser().is_dir():
                yield (
                    f"models.{role}.{option}: got {name!r}; must be a directory that exists; {Path(name).absolute()} does "
                    "not; correct the path, which is relative to the working directory, or put the model there"
                )


def _missing_prompts(config: RunConfig) -> Iterator[str]:
    source = config.prompts
    if config.services.coordinator_address is None and isinstance(source, JsonlPrompts) and (told := source.missing_file()):
        yield told


def _asked_ports(config: RunConfig) -> Iterator[tuple[str, str, int]]:
    """(option, host, port) of every port that the run file asks for and a started process would take."""
    services = config.services
    if services.coordinator_address:
        return
    yield "services.coordinator_port", services.host, services.coordinator_port
    yield "services.rest_port", services.host, services.rest_port
    if not services.buffer_address:
        yield "services.buffer_port", services.host, services.buffer_port
        if not config.store.url:
            yield "store.port", LOOPBACK, config.store.port
    if not services.trainer_address:
        yield "services.trainer_port", services.host, services.trainer_port
    if not services.rollout_addresses:
        for option, first in (("rollout_port", services.rollout_port), ("openai_port", services.openai_port)):
            for replica in range(config.rollout_replicas) if first else ():
                yield f"services.{option}", services.host, first + replica


def _taken_ports(config: RunConfig) -> Iterator[str]:
    for option, host, port in _asked_ports(config):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closing connection of before is no obstacle
            try:
                probe.bind((host.strip("[]"), port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    yield f"{option}: port {port} is taken; end what uses it, or set another port (0 takes a free one)"
                else:
                    yield f"services.host: cannot listen on {host}:{port} ({option}): {error.strerror}; correct the address"


def _unreachable_host(config: RunConfig) -> Iterator[str]:
    """A service elsewhere asks one that is started here, by an address that is none of this machine's for others."""
    services = config.services
    if services.coordinator_address or not (_is_for_itself(services.host) or services.host in ("0.0.0.0", "::")):
        return
    trainers = [address for name in config.trainer_groups() if (address := services.address_of(name))]
    asked = {"lease samples from the buffer": trainers} if not services.buffer_address else {}
    if not services.trainer_address:
        asked["fetch weights from the trainer"] = services.rollout_addresses
    for what, askers in asked.items():
        if far := [address for address in askers if not _is_for_itself(address.rpartition(":")[0])]:
            yield (
                f"services.host: got {services.host!r}; must be an address by which {', '.join(far)} can reach this "
                f"machine, to {what} that is started here; write this machine's address or name"
            )


def _is_for_itself(host: str) -> bool:
    return bool(_FOR_ITSELF.match(host.strip("[]")))
