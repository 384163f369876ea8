"""What `store.url` may say.

    redis://[user:password@]host[:port][/database]                                      one server
    unix://[user:password@]/path/to/socket[?db=database]                                one server on this machine
    redis+cluster://[user:password@]host[:port][,host[:port]...]                        Redis Cluster, by any of its nodes
    redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/database]    the master that sentinels name

`rediss`, `rediss+cluster` and `rediss+sentinel` are the same over TLS. Ports left out are 6379, and 26379 of sentinels.
User, password, service and path are percent-encoded where they hold special characters.

Options follow as ?option=value&...: those that redis-py's `from_url` takes, such as `ssl_ca_certs`, `ssl_certfile`,
`ssl_keyfile`, `ssl_cert_reqs`, `ssl_check_hostname`, `client_name`, `protocol`, `socket_timeout`, `socket_connect_timeout`,
`health_check_interval` and `max_connections`. Behind sentinels, user and password are those of the master; the sentinels'
own are the options `sentinel_username` and `sentinel_password`.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from redis.asyncio.connection import parse_url

from baton.errors import ConfigError

_SCHEME = re.compile(r"(?:redis(?P<tls>s?)(?:\+(?P<kind>cluster|sentinel))?|(?P<unix>unix))://(?P<rest>.*)", re.DOTALL)
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\s:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")
_FORMS = {
    "server": "redis://[user:password@]host:port[/database]",
    "unix": "unix://[user:password@]/path/to/socket[?db=database]",
    "cluster": "redis+cluster://[user:password@]host:port[,host:port...]",
    "sentinel": "redis+sentinel://[user:password@]host:port[,host:port...]/service[/database]",
}
_OURS = {"host", "port", "path", "retry", "retry_on_error", "decode_responses"}
"""Options that the URL has another place for, or that the buffer decides: it retries by itself, and stores bytes."""


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A URL taken apart."""

    shown: str
    """The URL without its passwords, for messages and logs."""
    kind: Literal["server", "cluster", "sentinel"]
    tls: bool
    hosts: list[tuple[str, int]]
    """Of the server, of nodes of the cluster, or of the sentinels; empty for a socket of this machine."""
    service: str
    """What the sentinels call the master; empty for other kinds."""
    options: dict[str, Any]
    """Keyword arguments of redis-py's connections: login, database, path of the socket, and the URL's own options."""
    sentinel_login: dict[str, str]
    """`username` and `password` at the sentinels, as far as they are given."""

    def wrong(self, rule: str) -> ConfigError:
        """The error for a URL that breaks `rule`, which begins with "must"."""
        return ConfigError(f"store.url: got {self.shown!r}; {rule}")


def hide_password(url: str) -> str:
    """The URL for messages and logs. In one that is wrong, whatever may be part of a password is hidden."""
    address, mark, query = url.partition("?")
    is_query = re.match(r"\w+=", query) and ("@" in address or re.match(r"[a-z+]+://([^:/]|/|$)", address))
    if "@" in query and not is_query:  # the password holds a question mark
        address, mark, query = url, "", ""
    address = re.sub(r"://([^/?@:]*):.*@", r"://\1:***@", address, flags=re.DOTALL)
    return address + mark + re.sub(r"((?:^|&)\w*password=)[^&]*", r"\1***", query)


def parse(url: str) -> StoreUrl:
    """Raises ConfigError, which shows no password, for a URL of none of the forms."""
    shown = hide_password(url)
    if not (scheme := _SCHEME.fullmatch(url)):
        schemes = "redis://, redis+cluster://, redis+sentinel://, the same with rediss for TLS, or unix://"
        raise ConfigError(f"store.url: got {shown!r}; must begin with {schemes}")
    kind = scheme["kind"] or "server"
    address, _, query = scheme["rest"].partition("?")
    authority, _, path = address.partition("/")
    login, _, hosts = authority.rpartition("@")
    try:
        options = _options(query) | _login(login)
        if scheme["unix"]:
            if hosts or not path:
                raise ValueError("the path begins with a third /")
            return StoreUrl(shown, "server", False, [], "", options | {"path": "/" + unquote(path)}, {})
        if "@" in path + query and "=" not in query.partition("@")[0]:
            raise ValueError("a / or ? in the user or the password is written %2F or %3F")
        found = [_host(host, 26379 if kind == "sentinel" else 6379) for host in (hosts or "localhost").split(",")]
        service, database = _service_and_database(kind, path)
        if kind == "server" and len(found) > 1:
            raise ValueError("several hosts are of redis+cluster:// or redis+sentinel://")
        if kind == "cluster" and options.setdefault("db", database):
            raise ValueError("a cluster has database 0 only")
        sentinel_login = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
        if kind != "sentinel" and any(sentinel_login.values()):
            raise ValueError("sentinel_username and sentinel_password are of redis+sentinel://")
    except ValueError as error:
        raise ConfigError(f"store.url: got {shown!r}; must be {_FORMS[scheme['unix'] or kind]} ({error})") from None
    given = {name: value for name, value in sentinel_login.items() if value}
    return StoreUrl(shown, kind, bool(scheme["tls"]), found, service, {"db": database} | options, given)


def _login(login: str) -> dict[str, str]:
    user, _, password = map(unquote, login.partition(":"))
    return {name: value for name, value in (("username", user), ("password", password)) if value}


def _options(query: str) -> dict[str, Any]:
    """What follows the question mark, with the types that redis-py gives it. Its errors name the option, not the value."""
    options = dict(parse_url("redis://?" + query.replace("#", "%23")))
    if ours := _OURS & set(options):
        raise ValueError(f"{', '.join(sorted(ours))}: not an option of this URL")
    if options.get("max_connections", 1) < 1:
        raise ValueError("max_connections is 1 or more")
    return options


def _host(text: str, port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if not match or not 0 < int(match["port"] or port) < 65536:  # the text is not shown: it may be part of a password
        raise ValueError("each host is a name, an address or [an IPv6 address], and a port is a number from 1 to 65535")
    return unquote(match["ipv6"] or match["name"]), int(match["port"] or port)


def _service_and_database(kind: str, path: str) -> tuple[str, int]:
    service, database = "", path.rstrip("/")
    if kind == "sentinel":
        service, _, database = database.partition("/")
        if not service:
            raise ValueError("the service, the name that the sentinels have for the master, is missing")
    if not re.fullmatch(r"[0-9]*", database):
        raise ValueError("the database is a number")
    return unquote(service), int(database or 0)
