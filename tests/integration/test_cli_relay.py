"""`baton relay`: the command as a process, asking a real buffer over a real store."""

import asyncio
import json
import math
from dataclasses import fields, replace

import pytest
import redis
from buffer_samples import make_samples
from cli_process import Place
from relay_runs import RelayRun

from baton.clients import LedgerClient
from baton.local.process_tree import start_time
from baton.relay.builtins import concat
from baton.samples import Samples
from baton.testing import FakeTrainer, serve

pytestmark = pytest.mark.slow

TOKENS = 200
"""Of a response, more or less: too many to show to people."""


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path, stand_ins=False)


@pytest.fixture
def ask(place, buffer):
    """Runs `baton relay ARGUMENTS` against the shared buffer."""
    return lambda *arguments: place.baton("relay", *arguments, "--buffer", buffer.address)


async def put_history(address: str, run_id: str, tokens: int = 6) -> None:
    """Episode 0: trained and kept. Episode 1: its first step, of episode 0, is acknowledged; its second is leased."""
    async with RelayRun(address, run_id) as run:
        for episode in range(2):
            await run.roll_out(episode, make_samples(range(4 * episode, 4 * episode + 4), tokens=tokens))
            _, steps = await run.choose(episode, concat)
            if episode == 0:
                await run.train(episode, steps, 0)
        await run.lease(1, 0)
        await run.buffer.ack(run_id, 1, "p0-s0-a1", global_step=1)
        await run.lease(1, 1)


async def put_freed(address: str, run_id: str) -> None:
    """Episode 0, wholly trained, of which no sample is kept."""
    async with RelayRun(address, run_id) as run:
        steps = await run.roll_out(0, make_samples(range(8)), relayed=False)
        await run.train(0, steps, 0)


async def put_groups(address: str, run_id: str) -> None:
    """Open episode 0 with three prompt groups: one issued, one generated, one given up with a reason."""
    async with RelayRun(address, run_id) as run, LedgerClient(address, timeout_s=20) as ledger:
        await run.buffer.open_episode(run_id, 0, expected_samples=None, global_batch_size=4, micro_batch_size=2)
        await ledger.issue_groups(run_id, 0, ["issued", "generated"], producer="p", timeout_s=60)
        await ledger.report_groups(run_id, 0, ["generated"], producer="p")
        for _ in range(4):
            await ledger.issue_groups(run_id, 0, ["bad"], producer="p", timeout_s=60)
            await ledger.report_groups(run_id, 0, ["bad"], producer="p", failure="the prompt :b: is empty")


def cells(table: str) -> list[dict[str, str]]:
    """The rows of a table whose columns are at least two spaces apart, by its headings."""
    headings, *rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]
    return [dict(zip(headings, row, strict=True)) for row in rows]


async def test_ls_of_a_run_lists_its_episodes_by_what_became_of_their_samples(ask, buffer, run_id):
    await put_history(buffer.address, run_id)
    rows = cells(ask("ls", run_id).stdout)
    assert [row["kind"] for row in rows] == ["ended, relayed", "closed, relayed"]
    shown = [[int(row[name]) for name in ("episode", "stored", "per pass", "leased", "trained", "acked")] for row in rows]
    assert shown == [[0, 4, 4, 0, 0, 0], [1, 4, 8, 4, 0, 4]]
    listed = json.loads(ask("ls", run_id, "--json").stdout)["episodes"]
    async with LedgerClient(buffer.address, timeout_s=20) as ledger:
        for episode, told in zip(await ledger.list_episodes(run_id), listed, strict=True):
            assert told == {field.name: getattr(episode, field.name) for field in episode.DESCRIPTOR.fields}


async def test_ls_counts_prompt_groups_that_are_not_stored(ask, buffer, run_id):
    await put_groups(buffer.address, run_id)
    (row,) = cells(ask("ls", run_id).stdout)
    assert [row[name] for name in ("kind", "issued", "generated", "failed", "stored", "bytes")] == [
        "open", "2", "1", "1", "0", "0 bytes",
    ]  # fmt: skip


async def test_ls_aligns_numbers_at_the_right_and_cuts_no_run_id(ask, buffer, run_id):
    long = f"{run_id}-{'x' * 150}"
    await put_history(buffer.address, long)
    heading, *rows = ask("ls").stdout.splitlines()
    (row,) = [row for row in rows if row.split()[0] == long]
    for name in ("episode", "leased", "acked"):
        end = heading.index(name) + len(name)
        assert row[end - 2].isspace() and row[end - 1].isdigit() and row[end].isspace()


async def test_ls_without_a_run_gives_the_newest_episode_of_each(ask, buffer, run_id):
    await put_history(buffer.address, f"{run_id}-a")
    await put_groups(buffer.address, f"{run_id}-b")
    listed = json.loads(ask("ls", "--json").stdout)["episodes"]
    own = [(episode["run_id"], episode["episode_id"]) for episode in listed if episode["run_id"].startswith(run_id)]
    assert own == [(f"{run_id}-a", 1), (f"{run_id}-b", 0)]


async def test_a_run_whose_samples_are_all_freed_is_not_an_unknown_run(ask, buffer, run_id):
    await put_freed(buffer.address, run_id)
    listed = ask("ls", run_id)
    assert (listed.returncode, listed.stdout) == (
        0, f"run {run_id} has no episode in the store any more: 1 episode trained and freed\n",
    )  # fmt: skip
    audit = ask("audit", run_id)
    assert (audit.returncode, audit.stdout.splitlines()[-1]) == (0, f"run {run_id} is clean")


@pytest.mark.parametrize("command", [["ls", "{}", "--json"], ["audit", "{}"], ["show", "{}", "s0"]])
def test_an_unknown_run_is_an_error_and_not_an_empty_answer(ask, run_id, command):
    answer = ask(*(word.format(run_id) for word in command))
    assert (answer.returncode, answer.stdout) == (1, "")
    assert f"holds no episode of a run '{run_id}', and none has ended; `baton relay ls` lists" in answer.stderr


async def test_show_tells_where_a_sample_is_and_shortens_its_arrays(ask, buffer, run_id):
    await put_history(buffer.address, run_id, TOKENS)
    first, *lines = ask("show", run_id, "s6").stdout.splitlines()
    assert first == f"sample s6 of run {run_id}: episode 1, position 2"
    at = lines.index("steps that have it:")
    assert lines[at + 1].startswith("  episode 1, pass 0, step 1: leased 1 ")
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[:at]}
    assert shown["prompt_ids"] == "6 7"
    begin, end = " ".join(map(str, range(6000, 6008))), " ".join(map(str, range(6191, 6199)))
    assert shown["response_ids"] == f"{begin} ... {end} (199 values)"
    assert {name: shown[name] for name in ("rewards", "reward_status", "finish_reasons", "metadata")} == {
        "rewards": "0.6", "reward_status": "value", "finish_reasons": "length", "metadata": '{"number": 6}',
    }  # fmt: skip
    columns = {field.name for field in fields(Samples)}
    assert set(shown) <= columns and {"rollout_logprobs", "weights_digests"} <= set(shown)


async def test_show_as_json_has_every_column_whole(ask, buffer, run_id):
    await put_history(buffer.address, run_id, TOKENS)
    found = json.loads(ask("show", run_id, "s0", "--json").stdout)
    assert (found["episode_id"], found["position"]) == (0, 0)
    assert found["steps"] == ["episode 1, pass 0, step 0: acked 1"]
    stored, told = make_samples(range(1), tokens=TOKENS), found["samples"]
    assert (told["size"], told["sample_ids"]) == (1, ["s0"])
    assert (told["rewards"], told["reward_status"]) == ([None], ["timeout"]), "NaN is no JSON"
    assert (told["group_sizes"], told["policy_version_max"], told["metadata"]) == ([4], [1], ['{"number": 0}'])
    for name in ("prompt_ids", "response_ids", "rollout_logprobs", "reference_logprobs", "loss_mask"):
        column = getattr(stored, name).values
        assert [column.dtype.type(value) for value in told[name][0]] == column.tolist(), name
    assert math.isclose(told["temperatures"][0], 0.7, rel_tol=1e-12)


async def test_show_says_which_columns_are_absent(ask, buffer, run_id):
    async with RelayRun(buffer.address, run_id) as run:
        await run.roll_out(0, replace(make_samples(range(4)), reference_logprobs=None), relayed=False)
    assert json.loads(ask("show", run_id, "s1", "--json").stdout)["samples"]["reference_logprobs"] is None
    lines = ask("show", run_id, "s1").stdout.splitlines()
    assert ["reference_logprobs", "absent"] in [line.split() for line in lines]
    assert lines[-1] == "steps that have it: none was leased, or the episode has ended"


async def test_show_of_a_sample_that_is_not_there_says_so(ask, buffer, run_id):
    await put_freed(buffer.address, run_id)
    answer = ask("show", run_id, "s1")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert f"run {run_id} has no sample 's1' in the store: it was never put, or its episode was trained" in answer.stderr


async def test_audit_of_a_clean_run_ends_with_0_and_says_so_last(ask, buffer, run_id):
    await put_history(buffer.address, run_id)
    audit = ask("audit", run_id)
    *lines, heading, untrained, sentence = audit.stdout.splitlines()
    assert (audit.returncode, sentence) == (0, f"run {run_id} is clean")
    assert (heading, untrained) == (
        "not trained:", f"  pass 0 of episode 1 of run {run_id}: 1 of 2 steps are trained",
    )  # fmt: skip
    counts = [line.rsplit(maxsplit=1) for line in lines]
    assert {name: count for name, count in counts if not name.startswith("bytes")} == {
        "episodes in the store": "2", "samples in the store": "8", "episodes wholly trained": "1",
        "samples they trained": "4", "optimizer steps": "2", "not trained": "1", "given up": "0",
        "faults": "0",
    }  # fmt: skip


async def test_audit_finds_a_chunk_that_the_store_lost_and_ends_with_1(ask, buffer, store, run_id):
    await put_history(buffer.address, run_id)
    lost = next(key for key in store.keys(run_id) if ":chunk:" in key)
    with redis.Redis.from_url(store.url) as client:
        assert client.delete(lost) == 1
    audit, told = ask("audit", run_id), ask("audit", run_id, "--json")
    assert (audit.returncode, told.returncode) == (1, 1)
    *_, heading, fault, sentence = audit.stdout.splitlines()
    assert (heading, sentence) == ("faults:", f"run {run_id} has 1 fault")
    assert fault.startswith("  4 samples of episode ") and fault.endswith(f" of run {run_id} are lost: {lost} is not there")
    facts = json.loads(told.stdout)
    assert facts["faults"] == [fault.strip()]
    assert (facts["ended_episodes"], facts["ended_samples"], facts["optimizer_steps"], facts["dead"]) == (1, 4, 2, [])


async def test_audit_names_what_was_given_up_with_its_reason_and_that_is_no_fault(ask, buffer, run_id):
    await put_groups(buffer.address, run_id)
    audit = ask("audit", run_id)
    assert audit.returncode == 0
    assert audit.stdout.splitlines()[-3:] == [
        "given up:", "  episode 0 group bad: the prompt :b: is empty", f"run {run_id} is clean",
    ]  # fmt: skip


def deploy(place: Place, name: str, address: str | None, *, pid: int | None = None, supervisor: int = 1) -> None:
    """Leaves the record of a deployment whose buffer is at `address`; `pid` is None for one that runs elsewhere."""
    directory = place.runs / name
    directory.mkdir(parents=True)
    services = {"buffer": {"pid": pid, "address": address, "log": None}}
    record = {"run_id": name, "supervisor_pid": supervisor, "supervisor_start": start_time(supervisor), "services": services}
    (directory / "deployment.json").write_text(json.dumps(record))


async def test_without_an_address_the_buffer_of_the_deployment_is_asked(place, buffer, run_id):
    await put_freed(buffer.address, run_id)
    deploy(place, "first", buffer.address)
    deploy(place, "second", "127.0.0.1:1")
    (place.runs / "latest").symlink_to("first")
    assert place.baton("relay", "audit", run_id).returncode == 0
    assert place.baton("relay", "audit", run_id, "--run-id", "second").returncode == 1


def test_without_a_deployment_the_command_says_how_to_name_a_buffer(place):
    answer = place.baton("relay", "ls")
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: no deployment in runs; ")
    assert answer.stderr.endswith("; --buffer HOST:PORT asks one that runs elsewhere\n")


def test_the_port_of_a_deployment_that_ended_is_not_asked(place, buffer):
    deploy(place, "a", buffer.address, pid=2, supervisor=2**22 + 1)
    answer = place.baton("relay", "ls", "--run-id", "a")
    assert answer.returncode == 1
    assert "the buffer of a has ended with its deployment" in answer.stderr


def test_a_buffer_that_is_not_ready_yet_is_told_apart_from_one_that_is_gone(place):
    deploy(place, "a", None)
    answer = place.baton("relay", "ls", "--run-id", "a")
    assert answer.returncode == 1
    assert "the buffer of a is not ready yet, as `baton status` shows" in answer.stderr


def test_a_socket_of_this_machine_is_an_address(place):
    answer = place.baton("relay", "ls", "--buffer", "unix-abstract:baton-nobody")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "unix-abstract:baton-nobody" in answer.stderr


@pytest.mark.parametrize("address", ["10.0.0.1", "host:port"])
def test_what_is_no_address_is_a_wrong_command_line(place, address):
    answer = place.baton("relay", "ls", "--buffer", address)
    assert answer.returncode == 2
    assert f"--buffer: got '{address}'; must be HOST:PORT" in answer.stderr


def test_a_buffer_that_is_not_reachable_is_an_error_with_the_fix(place):
    answer = place.baton("relay", "ls", "--buffer", "127.0.0.1:1")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "no buffer answers at 127.0.0.1:1, or not within 10 s; `baton status` shows" in answer.stderr


async def test_a_service_that_is_no_buffer_is_told_apart(place):
    async with serve(FakeTrainer()) as trainer:
        answer = await asyncio.to_thread(place.baton, "relay", "ls", "--buffer", trainer.address)
    assert answer.returncode == 1
    assert f"the service at {trainer.address} is no buffer, or an older one" in answer.stderr
