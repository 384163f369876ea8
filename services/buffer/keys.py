"""Every name that Baton uses in the store.

    baton:{run}:episode:3              hash    what OpenEpisode declared, and the counters: see `episode.py`
    baton:{run}:episode:3:requests     hash    Put's request id -> "first_position stored_samples", its answer
    baton:{run}:episode:3:sample-ids   set     ids of all samples
    baton:{run}:episode:3:groups       zset    group id, scored by the position of the group's first sample
    baton:{run}:episode:3:chunks       string  one record per Put, in position order: see `chunks.RECORD`
    baton:{run}:episode:3:steps        hash    lease id -> "leased DEADLINE" (Unix seconds) or "acked GLOBAL_STEP"
    baton:{run}:chunk:HEX              string  one Put's SampleBatch as it came, named by a random id
    baton:{run}:state:NAME             hash    revision, value

The braces are a Redis Cluster hash tag: all keys of a run live in one slot, so that a script may touch several. Chunks
belong to the run and never change, so that more than one list of records can refer to them.
"""

from baton.errors import InvalidRequestError


class EpisodeKeys:
    """The keys of one episode."""

    def __init__(self, run_id: str, episode_id: int) -> None:
        """Raises InvalidRequestError for an id that cannot be part of a key."""
        self.run = _run(run_id)
        if episode_id < 0:
            raise InvalidRequestError(f"episode_id is {episode_id}; episodes are counted from 0")
        self.run_id, self.episode_id = run_id, episode_id
        self.episode = f"{self.run}:episode:{episode_id}"
        self.requests = f"{self.episode}:requests"
        self.sample_ids = f"{self.episode}:sample-ids"
        self.groups = f"{self.episode}:groups"
        self.chunks = f"{self.episode}:chunks"
        self.steps = f"{self.episode}:steps"

    def chunk(self, name: bytes) -> str:
        """The key of the chunk with this random id."""
        return f"{self.run}:chunk:{name.hex()}"

    def __str__(self) -> str:
        """For messages."""
        return f"episode {self.episode_id} of run {self.run_id}"


def state_key(run_id: str, name: str) -> str:
    """The key of a named value of a run. Raises InvalidRequestError for ids that cannot be part of a key."""
    if not name:
        raise InvalidRequestError("name is empty; give the state a name, such as coordinator")
    return f"{_run(run_id)}:state:{name}"


def _run(run_id: str) -> str:
    if not run_id or "{" in run_id or "}" in run_id:
        raise InvalidRequestError(f"run_id is {run_id!r}; it must not be empty, nor hold braces: they group keys")
    return f"baton:{{{run_id}}}"
