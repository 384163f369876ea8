"""What the rollout service sets before it loads vLLM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SERVICE = """
import os
from baton.config.policy import PolicyConfig
from services.rollout.environment import prepare_environment
prepare_environment(PolicyConfig())
path = os.environ["VLLM_RPC_BASE_PATH"]
open(path + "/a-socket", "w").close()
print(path)
"""


def sockets_of_a_service(**environment: str) -> Path:
    """Where they were, after the end of a service with this environment."""
    command = [sys.executable, "-c", SERVICE]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.mark.parametrize("name", ["short", "long" * 30])
def test_the_sockets_are_removed_at_the_end_and_their_paths_are_never_too_long(name: str) -> None:
    directory = Path("/tmp", f"baton-{os.getpid()}-{name}")
    directory.mkdir()
    try:
        sockets = sockets_of_a_service(TMPDIR=str(directory))
        assert not sockets.exists()
        assert (sockets.parent == directory) == (name == "short")
        assert len(f"{sockets}/01234567-0123-0123-0123-0123456789ab") <= 107
    finally:
        directory.rmdir()


def test_a_place_of_the_users_own_is_used_and_kept(tmp_path: Path) -> None:
    assert sockets_of_a_service(VLLM_RPC_BASE_PATH=str(tmp_path)) == tmp_path
    assert (tmp_path / "a-socket").exists()


@pytest.mark.parametrize(("own", "used"), [({}, "spawn"), ({"VLLM_WORKER_MULTIPROC_METHOD": "fork"}, "fork")])
def test_the_engines_process_is_no_fork_of_one_that_has_threads_unless_the_user_says_so(
    own: dict[str, str], used: str
) -> None:
    program = f"{SERVICE}\nprint(os.environ['VLLM_WORKER_MULTIPROC_METHOD'])"
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_WORKER_MULTIPROC_METHOD"} | own
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split()[-1:] == [used], done.stderr
