"""Chunks on their way in: written first, taken up by a script afterwards, gone by themselves if that never happens."""

from baton.errors import InvalidRequestError, StoreUnavailableError
from services.buffer.checks import check
from services.buffer.chunks import Chunk, Chunks
from services.buffer.keys import RunKeys
from services.buffer.store import Store

EXPIRY_S = 600
"""A script follows within seconds; the rest is for a store whose clock jumps."""
REQUEST_BYTES = 256 * 2**20
"""The most that one request may bring: it is held here as a whole before it takes effect."""
REQUEST_CHUNKS = 1000


class Incoming:
    """The chunks of one request, checked as they arrive."""

    def __init__(
        self, store: Store, run: RunKeys, *, at_once: bool, what: str = "one request brings",
        remedy: str = "send fewer samples",
    ) -> None:  # fmt: skip
        """`at_once`: chunks are written while others are still on their way, not when all are there. `what` and `remedy`
        tell of too many of them."""
        self.chunks: list[Chunk] = []
        self.bytes = 0
        self._ids: set[str] = set()
        self._store = store
        self._run = run
        self._at_once = at_once
        self._what, self._remedy = what, remedy
        self._written: list[str] = []

    async def add(self, chunk: Chunk) -> None:
        """Takes one message's. Raises InvalidRequestError for samples that are not well formed, or too many."""
        self._check(chunk)
        self.chunks.append(chunk)
        if self._at_once:
            await self._write(chunk)

    def _check(self, chunk: Chunk) -> None:
        if not len(chunk.samples):
            raise InvalidRequestError("samples is empty; put at least one")
        check(chunk.samples)
        for sample_id in chunk.samples.sample_ids:
            if sample_id in self._ids:
                raise InvalidRequestError(
                    f"sample id {sample_id} occurs twice in one put; give every sample an id of its own"
                )
            self._ids.add(sample_id)
        self.bytes += chunk.size
        if self.bytes > REQUEST_BYTES or len(self.chunks) >= REQUEST_CHUNKS:
            raise InvalidRequestError(
                f"{self._what} more than {REQUEST_BYTES} bytes or {REQUEST_CHUNKS} messages; {self._remedy}"
            )
        if self.chunks and chunk.samples.columns() != self.columns:
            odd = ", ".join(sorted(set(chunk.samples.columns()) ^ set(self.columns)))
            raise InvalidRequestError(f"{odd}: in some messages of one put but not in others; fill a column in all or none")

    @property
    def columns(self) -> list[str]:
        """Names of the columns that all its samples have."""
        return self.chunks[0].samples.columns()

    @property
    def count(self) -> int:
        """Samples."""
        return sum(len(chunk.samples) for chunk in self.chunks)

    @property
    def sample_ids(self) -> list[str]:
        """Ids of all samples, in order."""
        return [sample_id for chunk in self.chunks for sample_id in chunk.samples.sample_ids]

    @property
    def records(self) -> bytes:
        """The entries of the chunks in a list of chunks."""
        return b"".join(chunk.record for chunk in self.chunks)

    def first_of_groups(self) -> dict[str, int]:
        """Each group's first place among the samples."""
        first: dict[str, int] = {}
        groups = (group for chunk in self.chunks for group in chunk.samples.group_ids or ())
        for at, group in enumerate(groups):
            first.setdefault(group, at)
        return first

    async def write(self) -> list[str]:
        """Writes what is not written yet, to expire; returns the keys of all chunks."""
        for chunk in self.chunks[len(self._written) :]:
            await self._write(chunk)
        return self._written

    async def _write(self, chunk: Chunk) -> None:
        key = self._run.chunk(chunk.name)
        # NX: sent twice, and carried out late, it must not give a chunk that was taken up meanwhile its expiry again
        await self._store.call("SET", key, chunk.payload, "NX", "EX", EXPIRY_S)
        self._written.append(key)

    async def drop(self) -> None:
        """Takes back what is written, if nothing took it up. What an ended call leaves goes by its expiry."""
        if self._written:
            await self._store.call("UNLINK", *self._written)

    def keep(self, chunks: Chunks) -> None:
        """Leaves the decoded samples to the cache: they are likely to be leased soon."""
        for chunk in self.chunks:
            chunks.add(chunk.name, chunk.samples, chunk.size)


def expired() -> StoreUnavailableError:
    """The error for chunks that were gone before a script took them up; the client sends them again."""
    return StoreUnavailableError(
        "the store forgot samples before they were taken up; did its clock jump? Sent again, they fit"
    )
