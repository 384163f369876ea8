"""Every kind of store that `store.url` may name: where it keeps what, and what is told when it refuses."""

import asyncio
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from buffer_samples import make_samples
from store_servers import (
    ClusterServers,
    SentinelServers,
    Server,
    buffer_on,
    free_ports,
    make_certificate,
    make_sentinel,
    open_store,
    state_key,
)

from baton.errors import ConfigError, ServiceFaultError
from processes import ServiceProcess

pytestmark = pytest.mark.slow

SIZES = {"expected_samples": 8, "global_batch_size": 8, "micro_batch_size": 8}
SECRET = "s/ec:r@e?t#%"
ENCODED = "s%2Fec%3Ar%40e%3Ft%23%25"


async def refusal(url: str) -> str:
    """The message of the ConfigError that the store's check ends with, at once."""
    began = time.monotonic()
    async with open_store(url, retry_s=60.0) as store:
        with pytest.raises(ConfigError) as refused:
            await store.check()
    assert time.monotonic() - began < 30, "it was tried again"
    assert str(refused.value).startswith("store.url: got ")
    return str(refused.value)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServers]:
    servers = ClusterServers(tmp_path_factory.mktemp("cluster"))
    try:
        yield servers.start()
    finally:
        servers.kill()


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelServers]:
    servers = SentinelServers(tmp_path_factory.mktemp("sentinel"))
    try:
        yield servers.start()
    finally:
        servers.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for a password, on a port and on `socket`. Its user ann may only read."""
    directory = tmp_path_factory.mktemp("server")
    process = Server(directory, free_ports(1)[0], "--unixsocket", directory / "socket", password=SECRET)
    process.socket = directory / "socket"
    try:
        process.start()
        process.ask("ACL", "SETUSER", "ann", "on", f">{SECRET}", "~*", "+@read", "+@connection", "+info")
        yield process
    finally:
        process.kill()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def tls_server(certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that speaks TLS only; `port` is that of TLS. It asks its clients for a certificate."""
    public, key = certificate
    port = free_ports(1)[0]
    options = ("--tls-port", port, "--tls-cert-file", public, "--tls-key-file", key, "--tls-ca-cert-file", public)
    process = Server(tmp_path_factory.mktemp("tls"), 0, *options)
    try:
        try:
            process.start()
        except AssertionError:
            if not re.search("Failed finding TLS support|Bad directive", process.output()):
                raise
            pytest.skip("this machine's server is built without TLS")
        process.port = port
        yield process
    finally:
        process.kill()


@pytest.fixture
def tls_url(tls_server: Server, certificate: tuple[Path, Path]) -> str:
    public, key = certificate
    return f"rediss://127.0.0.1:{tls_server.port}/3?ssl_ca_certs={public}&ssl_certfile={public}&ssl_keyfile={key}"


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """A URL of the kind that the test's parameter names."""
    match request.param:
        case "tls":
            return request.getfixturevalue("tls_url")
        case "unix":
            return f"unix://:{ENCODED}@{request.getfixturevalue('server').socket}?db=1"
        case "password":
            return f"redis://default:{ENCODED}@127.0.0.1:{request.getfixturevalue('server').port}/2?client_name=relay"
    return request.getfixturevalue(request.param).url


each_kind = pytest.mark.parametrize("url", ["password", "unix", "tls", "cluster", "sentinel"], indirect=True)


@pytest.mark.parametrize("url", ["password", "unix", "tls"], indirect=True)  # the others: test_store_failover.py
async def test_the_buffer_stores_and_counts_an_episode(url, run_file, run_id, tmp_path):
    async with buffer_on(url, run_file, tmp_path) as client:
        await client.open_episode(run_id, 0, **SIZES)
        assert await client.put(run_id, 0, make_samples(range(8)), request_id="a") == 8
        assert await client.put(run_id, 0, make_samples(range(8)), request_id="a") == 8
        counts = await client.get_episode(run_id, 0)
        assert (counts.stored, counts.group_ids) == (8, ["g0", "g1"])


@each_kind
async def test_a_pipeline_answers_every_command_in_order_and_scan_yields_every_key_once(url, run_id):
    names = [f"baton:{{{run_id}}}:{i}" for i in range(1500)]
    async with open_store(url) as store:
        await store.check()
        assert await store.pipeline([]) == []
        await store.pipeline([("SET", name, i) for i, name in enumerate(names)])
        asked = [
            ("GET", names[7]),
            ("HGETALL", state_key(run_id)),
            ("MGET", names[1], names[2]),
            ("GET", f"{names[0]}0"),
        ]
        assert await store.pipeline(asked) == [b"7", {}, [b"1", b"2"], None]
        found = [key async for key in store.scan(f"baton:{{{run_id}}}:*")]
        assert sorted(found) == sorted(name.encode() for name in names)
        await store.call("UNLINK", *names)


@each_kind
async def test_a_pipeline_with_a_wrong_command_is_an_error(url, run_id):
    key = state_key(run_id)
    async with open_store(url) as store:
        with pytest.raises(ServiceFaultError, match="wrong kind of value"):
            await store.pipeline([("SET", key, 1), ("HGETALL", key), ("GET", key)])
        assert await store.pipeline([("GET", key), ("UNLINK", key)]) == [b"1", 1]


async def test_the_options_of_the_url_reach_the_connections(server):
    url = f"redis://:{ENCODED}@127.0.0.1:{server.port}/1?db=5&client_name=relay&max_connections=2&protocol=2"
    async with open_store(url) as store:
        assert await asyncio.gather(*(store.call("SET", "baton:{a}:x", i) for i in range(20))) == [True] * 20
        clients = [line for line in (await store.call("CLIENT", "LIST")).splitlines() if b"name=relay" in line]
        assert len(clients) == 2
        assert all(b"db=5" in line and b"resp=2" in line for line in clients)


async def test_every_run_of_a_cluster_is_at_the_master_of_its_slot(cluster, run_id):
    runs = [cluster.run_at(index, run_id) for index in range(3)]
    keys = [state_key(run) for run in runs]
    async with open_store(cluster.url) as store:
        for key in keys * 2:  # no master knows the script before its first use there
            assert await store.run("put_state", [key], 0, b"1") == [b"put", 1]
        found = [key async for key in store.scan(f"baton:{{{run_id}-*}}:state:x")]
        assert sorted(found) == sorted(key.encode() for key in keys)
    for master, key in zip(cluster.masters, keys, strict=True):
        assert master.ask("KEYS", f"baton:{{{run_id}-*") == [key]


async def test_every_master_of_a_cluster_is_checked(cluster):
    last = cluster.masters[-1]
    last.ask("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru")
    try:
        async with open_store(cluster.url) as store:
            with pytest.raises(ConfigError, match=f"node 127.0.0.1:{last.port}, drops keys"):
                await store.check()
    finally:
        last.ask("CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction")


async def test_sentinels_may_speak_tls_too(tls_server, tls_url, certificate, tmp_path):
    port = free_ports(1)[0]
    lines = [f"tls-port {port}", f"tls-cert-file {certificate[0]}", f"tls-key-file {certificate[1]}", "tls-replication yes"]
    lines += [f"tls-ca-cert-file {certificate[0]}", f"sentinel monitor relay 127.0.0.1 {tls_server.port} 1"]
    sentinel = make_sentinel(tmp_path, 0, *lines)
    try:
        sentinel.start()
        query = tls_url.partition("?")[2]
        async with open_store(f"rediss+sentinel://127.0.0.1:{port}/relay/4?{query}") as store:
            assert await store.call("SET", "baton:{a}:x", 1)
    finally:
        sentinel.kill()


@pytest.mark.parametrize(
    ("login", "cause"),
    [("", "must hold a password"), (":wrong@", "must hold the user and password"), ("bob:wrong@", "must hold the user and")],
)
@pytest.mark.parametrize("place", ["port", "unix", "cluster"])
async def test_a_login_that_is_refused_is_told_at_once_without_the_password(server, place, login, cause):
    address = {"unix": f"unix://{login}{server.socket}", "port": f"redis://{login}127.0.0.1:{server.port}"}
    message = await refusal(address.get(place, f"redis+cluster://{login}127.0.0.1:{server.port}"))
    assert cause in message and "wrong@" not in message


def test_a_login_that_is_refused_ends_the_start_of_the_buffer(server, run_file, tmp_path):
    service = ServiceProcess("buffer", run_file, tmp_path, "--store", f"redis://:wrong@127.0.0.1:{server.port}/0")
    ended = subprocess.run(service.command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"store.url: got 'redis://:***@127.0.0.1:{server.port}/0'; must hold")
    assert "Traceback" not in ended.stderr


async def test_a_user_without_the_rights_is_told_at_once_which_to_give(server):
    async with open_store(f"redis://ann:{ENCODED}@127.0.0.1:{server.port}") as store:
        await store.check()
        with pytest.raises(ConfigError, match=r"ACL SETUSER ann ~baton:\* \+@all.*evalsha") as refused:
            await store.run("put_state", [state_key("run")], 0, b"")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ("?", "self-signed certificate.*ssl_ca_certs=FILE"),
        ("?ssl_ca_certs={public}", "CERTIFICATE_REQUIRED.*ssl_certfile=FILE"),
        ("?ssl_cert_reqs=none", "CERTIFICATE_REQUIRED.*ssl_certfile=FILE"),
    ],
)
@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster"])
async def test_tls_that_is_refused_is_told_at_once_with_what_to_add(tls_server, certificate, scheme, options, cause):
    message = await refusal(f"{scheme}://127.0.0.1:{tls_server.port}/{options.format(public=certificate[0])}")
    assert re.search(cause, message)


async def test_what_is_wrong_beside_tls_is_told_at_once(tls_url):
    assert "not valid for 'localhost'" in await refusal(tls_url.replace("127.0.0.1", "localhost"))
    of_a_cluster = tls_url.replace("rediss", "rediss+cluster").replace("/3?", "?")
    assert "must begin with redis:// or rediss://" in await refusal(of_a_cluster)


async def test_a_url_of_another_kind_than_the_store_names_the_right_scheme(server, cluster, sentinel):
    login, first, last = f":{ENCODED}@", cluster.servers[0].port, cluster.servers[-1].port
    watcher = re.search("@(.*)/relay", sentinel.url)[1]
    assert "must begin with redis+cluster://" in await refusal(f"redis://127.0.0.1:{first}")
    assert "must begin with redis+cluster://" in await refusal(f"redis://127.0.0.1:{last}")
    assert "must be redis+sentinel://" in await refusal(f"redis://:{sentinel.SENTINEL_PASSWORD}@{watcher}")
    assert "must begin with redis://" in await refusal(f"redis+cluster://{login}127.0.0.1:{server.port}")
    query = f"?sentinel_password={ENCODED}"
    assert "must begin with redis://" in await refusal(f"redis+sentinel://127.0.0.1:{server.port}/relay{query}")
    assert "must name a database" in await refusal(f"redis://{login}127.0.0.1:{server.port}/99")
    assert "must name a database" in await refusal(f"unix://{login}{server.socket}?db=99")


async def test_a_replica_is_refused(sentinel):
    url = f"redis://:{sentinel.PASSWORD}@127.0.0.1:{sentinel.replica.port}"
    assert "must name a master" in await refusal(url)


async def test_what_the_sentinels_refuse_is_told_at_once(sentinel):
    url, secret = sentinel.url, sentinel.SENTINEL_PASSWORD
    assert "they know relay" in await refusal(url.replace("/relay", "/other"))
    assert "sentinel_password=PASSWORD" in await refusal(url.replace(f"?sentinel_password={secret}", ""))
    assert "password of the sentinels" in await refusal(url.replace(secret, "wrong"))
    assert "password of the store" in await refusal(url.replace(sentinel.PASSWORD, "wrong"))
