"""Failures of the store: which of them time may heal, and what the others mean."""

import ssl
from collections.abc import Iterator

from redis import exceptions as failures

from baton.errors import BackpressureError, BatonError, ServiceFaultError, StoreUnavailableError
from services.buffer.store_url import StoreUrl

FAILURES = (failures.RedisError, failures.RedisClusterException)
"""What redis-py raises; the second is not a subclass of the first."""

_HEALING = (
    failures.ConnectionError,  # no master is known, it loads its data, it restarts ...
    failures.TimeoutError,
    failures.ReadOnlyError,  # a master that became a replica
    failures.ClusterError,  # slots without a master
    failures.AskError,  # slots that move
    failures.TryAgainError,
    failures.RedisClusterException,  # no layout of the cluster yet
)
_REFUSALS = (failures.AuthenticationError, failures.NoPermissionError)


def heals(error: BaseException) -> bool:
    """Whether the same command may succeed a moment later, because the store restarts or fails over."""
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLError) and _refuses_tls(cause):
            return False
        if isinstance(cause, _REFUSALS):  # the first is a ConnectionError to redis-py
            return False
        if isinstance(cause, FAILURES) and not isinstance(cause, _HEALING) and not str(cause).startswith("NOREPLICAS"):
            return False
    return isinstance(error, FAILURES)


def explained(error: BaseException, url: StoreUrl, *, at_sentinel: bool = False) -> BatonError:
    """The error to raise for one of FAILURES. What no time heals is a ConfigError that says what to change."""
    for cause in _chain(error):
        if isinstance(cause, failures.OutOfMemoryError):
            return BackpressureError(
                f"the store at {url.shown} is full ({cause}); raise its maxmemory, or remove runs that have ended "
                "(`baton relay rm RUN`)"
            )
        if rule := _rule(cause, url, at_sentinel):
            return url.wrong(rule)
    if type(error) is failures.ResponseError and not heals(error):
        return ServiceFaultError(f"the store at {url.shown} refused a command: {error}")
    return StoreUnavailableError(
        f"the store at {url.shown} cannot be used: {error}; see that it runs, and that store.url names it (with rediss "
        "if it speaks TLS, else redis); if it is only slow, raise deadlines.store_s"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it: redis-py wraps many errors into ConnectionErrors. What we raised is an earlier story."""
    while error and not isinstance(error, BatonError):
        yield error
        error = error.__cause__ or error.__context__


def _refuses_tls(error: ssl.SSLError) -> bool:
    """Whether one side refused the other's TLS, rather than went away."""
    reason = error.reason or ""
    return isinstance(error, ssl.SSLCertVerificationError) or "ALERT" in reason or reason == "WRONG_VERSION_NUMBER"


def _rule(cause: BaseException, url: StoreUrl, at_sentinel: bool) -> str | None:
    """What the URL must be, if the cause says that it is wrong."""
    prefix, whose = ("sentinel_", "the sentinels") if at_sentinel else ("", "the store")
    login = url.sentinel_login if at_sentinel else url.options
    where = "?sentinel_username=USER&sentinel_password=PASSWORD" if at_sentinel else "user:password@ before the host"
    text = str(cause)
    if isinstance(cause, failures.NoPermissionError):
        user = login.get("username", "default")
        return f"must name a user who may do everything with keys baton:* (ACL SETUSER {user} ~baton:* +@all): {text}"
    if isinstance(cause, failures.AuthenticationError) and not login.get("password"):
        return f"must hold a password, which {whose} ask{'' if at_sentinel else 's'} for; write {where}"
    if isinstance(cause, failures.AuthenticationError):
        return f"must hold the {prefix}user and password of {whose}, percent-encoded: {text}"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"must lead to a certificate that can be verified: {cause.verify_message}; name its authority by "
            "?ssl_ca_certs=FILE, and the host as the certificate does"
        )
    if isinstance(cause, ssl.SSLError) and _refuses_tls(cause):
        return (
            f"must suit the TLS of {whose}: {cause.reason}; if it asks for a certificate, name one by "
            "?ssl_certfile=FILE&ssl_keyfile=FILE"
        )
    if "cluster support disabled" in text:
        return "must begin with redis:// or rediss://, since the store is not a Redis Cluster"
    if at_sentinel and "unknown command" in text:
        return "must begin with redis:// or rediss://, since no sentinel is there"
    if "DB index" in text or "SELECT is not allowed" in text:
        return f"must name a database that the store has: {text}"
    return None
