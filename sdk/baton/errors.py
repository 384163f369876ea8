"""One taxonomy of errors, and the one table that maps it to gRPC statuses, both ways.

To add an error: subclass the nearest category (and the standard-library error that it refines), say in its docstring
who raises it and what the caller can do, and add a row to `_STATUS`. Servers send the class's name beside the status, so
clients raise exactly the class that the server raised.
"""

from collections.abc import Mapping

import grpc


class BatonError(Exception):
    """Base of every error that Baton raises on purpose."""


class ConfigError(BatonError, ValueError):
    """The run file is wrong. The message names the option, its value, the rule and the fix."""


class InvalidRequestError(BatonError, ValueError):
    """A request breaks a rule of its RPC. Sending it again cannot help."""


class NotFoundError(BatonError, LookupError):
    """The run, episode, lease or file that a request names does not exist."""


class ConflictError(BatonError):
    """Somebody else changed what this request was based on. Read again, then decide."""


class LeaseLostError(ConflictError):
    """The lease has expired, or somebody else holds the step now. Renew it, or leave the step to the other."""


class NotReadyError(BatonError):
    """The service cannot do this in its present state. The message says which state, and what ends it."""


class StalePolicyError(NotReadyError):
    """The replica serves another policy version than the request demands. The message names both."""


class WrongModelError(NotReadyError):
    """Weights were asked for by replicas of another model or tokenizer. The message names them, and all that differs."""

    def __init__(self, message: str, replicas: Mapping[str, str] | None = None) -> None:
        """`replicas`: what differs, by address, where that is known."""
        super().__init__(message)
        self.replicas = dict(replicas or {})


class DeadLetterError(NotReadyError):
    """Work was given up after too many attempts. The message has the last reason; it waits for a person."""


class DigestMismatchError(BatonError):
    """Weights differ from those that were published. The message says which side is behind."""


class BackpressureError(BatonError):
    """A budget is full. Waiting and sending again helps once others have consumed."""


class DeadlineError(BatonError, TimeoutError):
    """A wait reached its deadline. The message names what was waited for, and for how long."""


class ServiceUnavailableError(BatonError, ConnectionError):
    """A service cannot be reached or went away during the call."""


class StoreUnavailableError(ServiceUnavailableError):
    """The buffer service lost its Redis-protocol store."""


class ServiceFaultError(BatonError, RuntimeError):
    """A service failed in a way that it did not expect. Its log holds the traceback."""


class RunFailedError(BatonError, RuntimeError):
    """A run ended by an error; the message is the run's own."""


_STATUS: dict[type[BatonError], grpc.StatusCode] = {
    ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    ConflictError: grpc.StatusCode.ABORTED,
    LeaseLostError: grpc.StatusCode.ABORTED,
    DeadLetterError: grpc.StatusCode.FAILED_PRECONDITION,
    StalePolicyError: grpc.StatusCode.FAILED_PRECONDITION,
    WrongModelError: grpc.StatusCode.FAILED_PRECONDITION,
    NotReadyError: grpc.StatusCode.FAILED_PRECONDITION,
    DigestMismatchError: grpc.StatusCode.DATA_LOSS,
    BackpressureError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    StoreUnavailableError: grpc.StatusCode.UNAVAILABLE,
    ServiceUnavailableError: grpc.StatusCode.UNAVAILABLE,
    RunFailedError: grpc.StatusCode.INTERNAL,
    ServiceFaultError: grpc.StatusCode.INTERNAL,
}
_BY_NAME = {error.__name__: error for error in _STATUS}
_BY_STATUS = {status: error for error, status in reversed(_STATUS.items())} | {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: InvalidRequestError,  # gRPC's own: a message is over its size limit
    grpc.StatusCode.FAILED_PRECONDITION: NotReadyError,
    grpc.StatusCode.UNAVAILABLE: ServiceUnavailableError,
    grpc.StatusCode.INTERNAL: ServiceFaultError,
}

ERROR_KEY = "baton-error"
"""Trailing metadata key that carries the class's name."""
MESSAGE_BYTES = 2000
"""Longest message that is sent whole: it travels in a header of at most 8 KiB, where a byte may take three."""


def to_status(error: BaseException) -> tuple[grpc.StatusCode, str, str]:
    """Returns (status, message, class name) for any exception; what is not ours becomes INTERNAL. A long message is cut."""
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind], _cut(str(error)), kind.__name__
    return grpc.StatusCode.INTERNAL, _cut(f"{type(error).__name__}: {error}"), ServiceFaultError.__name__


def _cut(message: str) -> str:
    raw = message.encode(errors="replace")
    if len(raw) <= MESSAGE_BYTES:
        return message
    return f"{raw[:MESSAGE_BYTES].decode(errors='ignore')} [... cut here; the service's log holds all {len(raw)} bytes]"


def from_rpc_error(error: grpc.RpcError, call: str, address: str, timeout_s: float | None) -> BatonError:
    """Returns the SDK error for a failed call, with the service and its address in the message."""
    status, details = error.code(), error.details() or ""
    name = dict(error.trailing_metadata() or ()).get(ERROR_KEY)
    if name in _BY_NAME:
        return _BY_NAME[name](details)
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"{call} at {address} did not answer within {timeout_s:g} s; is that service up, or only slow?")
    if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):  # cancelled by a server that ends
        cause = f"no service at {address}, or it went away during the call ({details})"
        return ServiceUnavailableError(f"{call}: {cause}; see its log")
    return _BY_STATUS.get(status, ServiceFaultError)(f"{call} at {address}: {status.name}: {details}")
