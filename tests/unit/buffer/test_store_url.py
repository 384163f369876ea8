"""What `store.url` may say, and what is told of a URL that says something else."""

import pytest

from baton.config.services import StoreConfig
from baton.errors import ConfigError
from services.buffer.store import Store
from services.buffer.store_url import hide_password, parse


def refusal(url: str) -> str:
    with pytest.raises(ConfigError) as refused:
        Store(url, retry_s=1.0)
    return str(refused.value)


@pytest.mark.parametrize(
    ("url", "kind", "tls", "hosts", "service", "options"),
    [
        ("redis://h", "server", False, [("h", 6379)], "", {"db": 0}),
        ("redis:///3", "server", False, [("localhost", 6379)], "", {"db": 3}),
        ("redis://[::1]:7/0/", "server", False, [("::1", 7)], "", {"db": 0}),
        ("rediss://ann:a%2Fb@h:7/2", "server", True, [("h", 7)], "", {"db": 2, "username": "ann", "password": "a/b"}),
        ("redis://:p@q#r@h:7", "server", False, [("h", 7)], "", {"db": 0, "password": "p@q#r"}),
        ("redis://h/1?db=4&password=a%26b#", "server", False, [("h", 6379)], "", {"db": 4, "password": "a&b#"}),
        ("unix:///run/a%20b@c.sock?db=2", "server", False, [], "", {"db": 2, "path": "/run/a b@c.sock"}),
        ("unix://:pw@/s.sock", "server", False, [], "", {"password": "pw", "path": "/s.sock"}),
        ("redis+cluster://h:7,[::1],i:8", "cluster", False, [("h", 7), ("::1", 6379), ("i", 8)], "", {"db": 0}),
        ("rediss+cluster://ann:pw@h", "cluster", True, [("h", 6379)], "", {"db": 0, "username": "ann", "password": "pw"}),
        ("redis+sentinel://h:7,i/my%2Fname", "sentinel", False, [("h", 7), ("i", 26379)], "my/name", {"db": 0}),
        ("rediss+sentinel://:pw@h/name/5", "sentinel", True, [("h", 26379)], "name", {"db": 5, "password": "pw"}),
    ],
)
def test_every_form_of_url_is_read(url, kind, tls, hosts, service, options):
    read = parse(StoreConfig(url=url).url)
    assert (read.kind, read.tls, read.hosts, read.service, read.options) == (kind, tls, hosts, service, options)


def test_options_have_the_types_that_redis_py_gives_them():
    read = parse("rediss://h?socket_timeout=0.5&health_check_interval=3&ssl_check_hostname=no&client_name=a%20b")
    given = {"socket_timeout": 0.5, "health_check_interval": 3, "ssl_check_hostname": False, "client_name": "a b"}
    assert read.options == {"db": 0} | given


def test_the_login_at_the_sentinels_is_not_the_masters():
    read = parse("redis+sentinel://ann:pw@h/name?sentinel_username=bob&sentinel_password=other")
    assert read.sentinel_login == {"username": "bob", "password": "other"}
    assert read.options == {"db": 0, "username": "ann", "password": "pw"}


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://h", "must begin with redis://"),
        ("redis+magic://h", "must begin with redis://"),
        ("redis:h", "must begin with redis://"),
        ("redis://h:port", "a port is a number from 1 to 65535"),
        ("redis://h:0", "a port is a number from 1 to 65535"),
        ("redis://h:65536", "a port is a number from 1 to 65535"),
        ("redis://[::1", "[an IPv6 address]"),
        ("redis://::1", "[an IPv6 address]"),
        ("redis://a,b", "several hosts are of redis+cluster:// or redis+sentinel://"),
        ("redis+cluster://a,,b", "each host is a name"),
        ("redis://h/zero", "the database is a number"),
        ("redis://h?db=zero", "Invalid value for 'db'"),
        ("redis+cluster://h/1", "a cluster has database 0 only"),
        ("redis+cluster://h?db=1", "a cluster has database 0 only"),
        ("redis+sentinel://h", "the service, the name that the sentinels have for the master, is missing"),
        ("redis+sentinel://h//0", "is missing"),
        ("redis+sentinel://h/name/zero", "the database is a number"),
        ("unix://run/s.sock", "the path begins with a third /"),
        ("unix://", "the path begins with a third /"),
        ("redis://h?sentinel_password=x", "are of redis+sentinel://"),
        ("redis://h?decode_responses=yes", "decode_responses: not an option of this URL"),
        ("redis://h?port=1", "port: not an option of this URL"),
        ("redis://h?no_such=1", "must have options that redis-py's connections take, not 'no_such'"),
        ("redis+cluster://h?retry_on_timeout=1", "redis-py's cluster client takes, not 'retry_on_timeout'"),
        ("redis://h?ssl_ca_certs=x", "'ssl_ca_certs'; ssl options are of rediss"),
        ("rediss://h?ssl_cert_reqs=maybe", "Invalid SSL Certificate Requirements Flag: maybe"),
        ("rediss://h?ssl_ca_certs=/no/such/file", "must name readable files in its ssl options"),
        ("redis://h?max_connections=0", "max_connections is 1 or more"),
        ("redis://h?protocol=9", "protocol must be either 2 or 3"),
    ],
)
def test_a_wrong_url_is_an_error_that_names_option_value_and_rule(url, rule):
    message = refusal(url)
    assert message.startswith(f"store.url: got {hide_password(url)!r}; must ")
    assert rule in message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis+cluster://ann:secret@h:1,i:2", "redis+cluster://ann:***@h:1,i:2"),
        (
            "redis+sentinel://:secret@h:1/name?sentinel_password=secret",
            "redis+sentinel://:***@h:1/name?sentinel_password=***",
        ),
        ("rediss://h:1?ssl_password=secret&db=1", "rediss://h:1?ssl_password=***&db=1"),
        ("redis://h:1/0?client_name=a@b", "redis://h:1/0?client_name=a@b"),
        ("redis://:secret@h:1/0?client_name=a@b", "redis://:***@h:1/0?client_name=a@b"),
        ("redis://ann:sec/ret@h:1", "redis://ann:***@h:1"),
        ("redis://:sec?ret@h:1", "redis://:***@h:1"),
        ("redis://:sec?ret=ret@h:1", "redis://:***@h:1"),
        ("redis://:sec#ret@h:1/x", "redis://:***@h:1/x"),
    ],
)
def test_no_message_shows_a_password(url, shown):
    assert hide_password(url) == shown


@pytest.mark.parametrize("secret", ["sec/ret", "sec?ret", "/sec", "12/ret"])
def test_a_password_that_is_not_percent_encoded_is_told_without_showing_it(secret):
    message = refusal(f"redis://ann:{secret}@h:1")
    assert "is written %2F or %3F" in message and "'redis://ann:***@h:1'" in message
    assert "sec" not in message and "ret" not in message.replace("retry", "")
