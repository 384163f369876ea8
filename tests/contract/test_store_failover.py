"""Commands on their way while a store fails over, moves slots, is replaced or stays away."""

import asyncio
import signal
import time
from pathlib import Path

import pytest
from buffer_samples import make_samples
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from store_servers import (
    ClusterServers,
    Group,
    SentinelServers,
    Server,
    buffer_on,
    free_ports,
    open_store,
    state_key,
    wait_until,
)

from baton.errors import StoreUnavailableError
from services.buffer.store import Store

pytestmark = pytest.mark.slow

SIZES = {"expected_samples": 8, "global_batch_size": 8, "micro_batch_size": 8}


async def keys_of(store: Store, pattern: str) -> list[bytes]:
    return [key async for key in store.scan(pattern)]


async def fail_over(servers: Group, run: str, run_file: Path, directory: Path) -> None:
    """Kills the run's master with commands on their way; all must be carried out by its replica."""
    master, replica, key = servers.master, servers.replica, state_key(run)
    async with (
        buffer_on(servers.url, run_file, directory) as client,
        open_store(servers.url) as store,
        open_store(servers.url) as another,
    ):
        await client.open_episode(run, 0, **SIZES)
        await client.put(run, 0, make_samples(range(4)), request_id="a")
        assert await store.run("put_state", [key], 0, b"1") == [b"put", 1]
        assert await another.pipeline([("EXISTS", key)]) == [1]
        assert await keys_of(store, f"{key}*") == [key.encode()]
        written = master.ask("INFO", "replication")["master_repl_offset"]

        def has_it_all() -> bool:
            """Also if a machine under load took the master for dead, and the replica leads already."""
            facts = replica.ask("INFO", "replication")
            return facts["role"] == "master" or facts["slave_repl_offset"] >= written

        wait_until(has_it_all, "the replica has it all")

        await asyncio.to_thread(master.kill)
        async with asyncio.timeout(40):
            answers = await asyncio.gather(
                client.put(run, 0, make_samples(range(4, 8)), request_id="b"),
                store.run("put_state", [key], 1, b"2"),
                store.call("EXISTS", key),
                another.pipeline([("EXISTS", key), ("HEXISTS", key, "value")]),
                keys_of(store, f"{key}*"),
            )
        assert answers == [8, [b"put", 2], 1, [1, 1], [key.encode()]]
        assert (await client.get_episode(run, 0)).stored == 8


async def test_commands_outlive_a_master_that_sentinels_replace(run_file, run_id, tmp_path):
    servers = SentinelServers(tmp_path)
    try:
        await asyncio.to_thread(servers.start)
        await fail_over(servers, run_id, run_file, tmp_path)
    finally:
        servers.kill()


async def test_commands_follow_a_slot_of_a_cluster_and_outlive_its_master(run_file, run_id, tmp_path):
    servers = ClusterServers(tmp_path)
    try:
        await asyncio.to_thread(servers.start)
        async with open_store(servers.url) as store:
            run = servers.run_at(1, run_id)
            key, slot, master = state_key(run), key_slot(run.encode()), servers.masters[1]
            assert await store.call("EXISTS", key) == 0  # the layout is known
            servers.move_slot(slot, 2)
            assert await store.pipeline([("EXISTS", key), ("EXISTS", key)]) == [0, 0]
            servers.move_slot(slot, 1)
            assert await store.run("put_state", [key], 0, b"1") == [b"put", 1]
            master.ask("CLUSTER", "DELSLOTS", slot)  # nobody has it for a moment
            put = asyncio.create_task(store.run("put_state", [key], 1, b"2"))
            await asyncio.sleep(0.3)
            assert not put.done()
            master.ask("CLUSTER", "ADDSLOTS", slot)
            assert await asyncio.wait_for(put, 40) == [b"put", 2]
            assert master.ask("HGET", key, "revision") == "2"
        await fail_over(servers, servers.run_at(0, run_id), run_file, tmp_path)
    finally:
        servers.kill()


async def test_a_cluster_whose_nodes_are_all_replaced_is_found_again_by_the_hosts_of_the_url(tmp_path):
    ports = free_ports(4)
    old, new = (
        Server(tmp_path, port, "--cluster-enabled", "yes", "--cluster-port", bus)
        for port, bus in zip(ports[:2], ports[2:], strict=True)
    )
    try:
        for server in (old, new):
            await asyncio.to_thread(server.start)
            server.ask("CLUSTER", "ADDSLOTSRANGE", 0, REDIS_CLUSTER_HASH_SLOTS - 1)
        for server in (old, new):
            wait_until(lambda server=server: "cluster_state:ok" in server.ask("CLUSTER", "INFO"), "it works")
        async with open_store(f"redis+cluster://127.0.0.1:{old.port},localhost:{new.port}?socket_timeout=0.5") as store:
            new.popen.send_signal(signal.SIGSTOP)  # only the old one answers when the store asks for the layout
            assert await store.call("SET", "baton:{a}:x", 1)
            new.popen.send_signal(signal.SIGCONT)
            old.kill()
            assert await asyncio.wait_for(store.call("SET", "baton:{a}:x", 2), 40)
        assert new.ask("GET", "baton:{a}:x") == "2"
    finally:
        old.kill()
        new.kill()


@pytest.mark.parametrize(
    ("spoil", "mend"),
    [
        (("REPLICAOF", "127.0.0.1", 1), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "min-replicas-to-write", 1), ("CONFIG", "SET", "min-replicas-to-write", 0)),
    ],
    ids=["replica", "without-replicas"],
)
async def test_a_master_that_takes_no_writes_for_a_moment_goes_unnoticed(spoil, mend, tmp_path):
    server, command = Server(tmp_path, free_ports(1)[0]), ("SET", "baton:{a}:x", 1)
    try:
        await asyncio.to_thread(server.start)
        async with open_store(f"redis://127.0.0.1:{server.port}") as store:
            for send in (lambda: store.call(*command), lambda: store.pipeline([command])):
                before = await store.call("CLIENT", "ID")
                server.ask(*spoil)
                write = asyncio.create_task(send())
                await asyncio.sleep(0.3)
                assert not write.done()
                server.ask(*mend)
                assert await asyncio.wait_for(write, 40) in (True, [True])
                if spoil[0] == "REPLICAOF":  # by then its name may lead to another server
                    assert await store.call("CLIENT", "ID") > before
    finally:
        server.kill()


@pytest.mark.parametrize(
    "url", ["rediss://{}", "redis+cluster://{}", "redis+sentinel://{}/relay?sentinel_password=secret", "unix://{}"]
)
async def test_a_store_of_any_kind_that_stays_away_is_a_clear_error_in_bounded_time(url, tmp_path):
    address = f":secret@127.0.0.1:{free_ports(1)[0]}" if "unix" not in url else f":secret@{tmp_path}/socket"
    began = time.monotonic()
    async with open_store(url.format(address), retry_s=0.5) as store:
        key, shown = state_key("run"), url.format(address).replace("secret", "***")
        attempts = [
            store.check(), store.call("GET", key), store.run("put_state", [key], 0, b""), store.pipeline([("GET", key)]),
            keys_of(store, "baton:*"),
        ]  # fmt: skip
        for error in await asyncio.gather(*attempts, return_exceptions=True):
            assert isinstance(error, StoreUnavailableError)
            assert shown in str(error) and "store.url" in str(error) and "secret" not in str(error)
    assert 0.5 < time.monotonic() - began < 30
