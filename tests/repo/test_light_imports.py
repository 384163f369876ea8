"""What must start at once does: `--help` of every service, without the libraries that only its work needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "vllm", "megatron", "transformers"}
SERVICES = ["buffer", "coordinator", "rollout", "trainer"]
HELP = """
import json, runpy, sys
module, sys.argv = sys.argv[1], ["x", "--help"]
try:
    runpy.run_module(module, run_name="__main__")
except SystemExit as end:
    modules = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps({"code": end.code or 0, "modules": modules}), file=sys.stderr)
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("service", SERVICES)
def test_help_of_a_service_answers_with_two_seconds_of_work(service: str) -> None:
    seconds = []
    for _ in range(3):  # the quickest of three: a busy machine is not a slow import
        before = os.times()
        answer = python("-m", f"services.{service}", "--help")
        after = os.times()
        seconds.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )  # not the time by the clock, in which a busy machine does other work
        assert answer.returncode == 0, answer.stderr
        assert "--run-file" in answer.stdout
        if seconds[-1] < 2.0:
            break
    assert min(seconds) < 2.0


@pytest.mark.parametrize("service", SERVICES)
def test_help_of_a_service_imports_no_heavy_library(service: str) -> None:
    told = json.loads(python("-c", HELP, f"services.{service}").stderr.strip().splitlines()[-1])
    assert told["code"] == 0
    assert HEAVY & set(told["modules"]) == set()


@pytest.mark.parametrize(
    "module", ["baton", "baton.clients", "baton.config", "baton.engine", "baton.testing", "baton.weights", "baton.cli"]
)
def test_the_sdk_imports_no_heavy_library(module: str) -> None:
    command = f"import sys, json, {module}; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    answer = python("-c", command)
    assert answer.returncode == 0, answer.stderr
    assert HEAVY & set(json.loads(answer.stdout)) == set()


def test_the_import_rules_are_kept() -> None:
    answer = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert answer.returncode == 0, answer.stdout
    assert "0 broken" in answer.stdout
