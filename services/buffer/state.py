"""Small named values of a run, changed by compare-and-set."""

from baton.errors import ConflictError, InvalidRequestError
from services.buffer.keys import RunKeys
from services.buffer.store import Store

VALUE_BYTES = 2**20
"""The largest value."""


class RunState:
    """Named values, each with a revision that counts its writes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, run_id: str, name: str, value: bytes, expected_revision: int) -> int:
        """Stores the value; returns its revision. Raises ConflictError if the present one is not the expected."""
        if len(value) > VALUE_BYTES:
            raise InvalidRequestError(
                f"state {name} has {len(value)} bytes; at most {VALUE_BYTES} fit, so keep bulk data in files"
            )
        match await self._store.run("put_state", [RunKeys(run_id).state(name)], expected_revision, value):
            case [b"put", revision]:
                return revision
            case [_, revision]:
                raise ConflictError(
                    f"state {name} of run {run_id} is at revision {revision}, not {expected_revision}; read it again, then "
                    "decide (a second coordinator of this run would do this)"
                )
        raise AssertionError("put_state.lua returns one of the two")

    async def get(self, run_id: str, name: str) -> tuple[bytes, int]:
        """(value, revision); (b"", 0) if it was never put."""
        value, revision = await self._store.call("HMGET", RunKeys(run_id).state(name), "value", "revision")
        return value or b"", int(revision or 0)
