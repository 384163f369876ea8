"""What all stand-ins do: parse the services' options, misbehave as told, serve, write the ready file."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def behaviours(name: str) -> set[str]:
    """What service `name` was told to do: healthy, crash, crash-later (once a file crash_now
    exists), never-ready, ignore-term, orphan, fail, endless."""
    told = [entry.split(":") for entry in os.environ.get("BATON_STAND_IN", "").split(",") if entry]
    return {what for who, what in told if who == name}


def start_orphan() -> None:
    """Leaves a grandchild in a session of its own that ignores SIGTERM and whose parent is gone."""
    sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    middle = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleeper!r}], start_new_session=True)"
    subprocess.run([sys.executable, "-c", middle], check=True)


def end_in_order(name: str) -> None:
    """Adds the service's name to the file `ended`, and ends."""
    with Path("ended").open("a") as file:
        file.write(f"{name}\n")
    os._exit(0)


def start_server(options, add) -> tuple[object, str, dict[str, str]]:
    """Starts a gRPC server with a health service. Returns it, for it ends with its last reference, its address, and
    the facts that `add` gave.
    """
    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    server, checks = grpc.server(ThreadPoolExecutor(8)), health.HealthServicer()
    checks.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    facts = add(server, options) if add else {}
    bound = server.add_insecure_port(options.listen)
    address = options.listen if options.listen.startswith("unix") else f"127.0.0.1:{bound}"
    server.start()
    return server, address, facts


def serve(name: str, add=None) -> None:
    """Is service `name` until SIGTERM. `add` puts a servicer on the server and returns more facts for the ready file.

    Without a servicer it serves only if told to be healthy: most tests need no more than the ready file, which is quicker.
    """
    parser = argparse.ArgumentParser()
    for option in ("--run-file", "--listen", "--ready-file"):
        parser.add_argument(option, required=True)
    for option in ("--store", "--replica", "--openai-listen", "--app", "--buffer", "--trainer", "--output-dir"):
        parser.add_argument(option)
    parser.add_argument("--rollout", action="append")
    options = parser.parse_args()
    told = behaviours(name)
    sys.stderr.write(f"{name} has started\n")
    if "orphan" in told:
        start_orphan()
    if "crash" in told:
        raise SystemExit(f"{name}: the model does not fit")
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "ignore-term" in told else lambda *_: end_in_order(name))
    if "never-ready" in told or os.environ.get("RANK", "0") != "0":
        time.sleep(600)
    address, facts = options.listen, {}
    if add or "healthy" in told:
        _server, address, facts = start_server(options, add)
    ready = Path(options.ready_file)
    partial = ready.with_suffix(".partial")
    partial.write_text(json.dumps({"address": address, "pid": os.getpid(), **facts}))
    partial.replace(ready)
    if "crash-later" in told:
        while not Path("crash_now").exists():
            time.sleep(0.02)
        os._exit(3)
    time.sleep(600)
