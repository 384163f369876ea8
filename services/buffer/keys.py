"""Every name that Baton uses in the store.

    baton:{run}:episodes               zset    ids of the episodes that the store holds, scored by themselves
    baton:{run}:usage                  hash    samples, bytes: of all episodes that the store holds; attempts: the most that
                                               any step had; attempt_floor: those of before the last roll back
    baton:{run}:ended                  hash    episode id -> "samples passes steps lost left_out": of every wholly trained
                                               episode; lost are the prompt groups that were issued, and neither put nor
                                               failed, left_out those that failed
    baton:{run}:global-steps           zset    "episode pass step" -> the optimizer step that trained it, for good
    baton:{run}:relaying               hash    episode id -> ids of the episodes that its training set refers to
    baton:{run}:dead                   hash    "episode 3 group g7" or "episode 3 step p0-s1" -> why it was given up,
                                               until it is put or trained after all
    baton:{run}:episode:3              hash    what OpenEpisode declared, and the counters: see `episode.py`
    baton:{run}:episode:3:requests     hash    Put's request id -> "first_position stored_samples", its answer
    baton:{run}:episode:3:sample-ids   set     ids of all samples
    baton:{run}:episode:3:groups       zset    group id, scored by the position of the group's first sample
    baton:{run}:episode:3:issues       hash    group id -> "issued|generated|failed attempt time timeout producer"
    baton:{run}:episode:3:chunks       string  one record per chunk, in position order: see `chunks.RECORD`
    baton:{run}:episode:3:steps        hash    "p0-s1" -> "leased attempt time timeout lessee", "released attempt reason",
                                               "rewound attempt", "trained GLOBAL_STEP" or "acked GLOBAL_STEP"
    baton:{run}:episode:3:selection    string  a relayed episode's training set: see `selection.REFERENCE`
    baton:{run}:episode:3:made         string  as chunks, of the samples that the relay function made
    baton:{run}:chunk:HEX              string  some samples, named by a random id: see `chunks.py`
    baton:{run}:state:NAME             hash    revision, value

The braces are a Redis Cluster hash tag: all keys of a run live in one slot, so that a script may touch several. Times
are the store's own clock. A chunk is written first, with an expiry, and loses it when a script takes it up: what is
interrupted in between leaves nothing behind.

A full store refuses a script's first write unless it is a deletion, and none of those after it. The scripts that a stored
sample still needs, until it is trained and gives room, begin with one therefore.
"""

import re

from baton.errors import InvalidRequestError


class RunKeys:
    """The keys that a run has once."""

    def __init__(self, run_id: str) -> None:
        """Raises InvalidRequestError for an id that cannot be part of a key."""
        if not run_id or "{" in run_id or "}" in run_id:
            raise InvalidRequestError(f"run_id is {run_id!r}; it must not be empty, nor hold braces: they group keys")
        self.run_id = run_id
        self.prefix = f"baton:{{{run_id}}}"
        self.episodes = f"{self.prefix}:episodes"
        self.usage = f"{self.prefix}:usage"
        self.ended = f"{self.prefix}:ended"
        self.global_steps = f"{self.prefix}:global-steps"
        self.relaying = f"{self.prefix}:relaying"
        self.dead = f"{self.prefix}:dead"

    def chunk(self, name: bytes) -> str:
        """The key of the chunk with this random id."""
        return f"{self.prefix}:chunk:{name.hex()}"

    def state(self, name: str) -> str:
        """The key of a named value. Raises InvalidRequestError for a name that is empty."""
        if not name:
            raise InvalidRequestError("name is empty; give the state a name, such as coordinator")
        return f"{self.prefix}:state:{name}"

    def __str__(self) -> str:
        """For messages."""
        return f"run {self.run_id}"


class EpisodeKeys:
    """The keys of one episode."""

    def __init__(self, run_id: str, episode_id: int) -> None:
        """Raises InvalidRequestError for an id that cannot be part of a key."""
        self.run = RunKeys(run_id)
        if episode_id < 0:
            raise InvalidRequestError(f"episode_id is {episode_id}; episodes are counted from 0")
        self.run_id, self.episode_id = run_id, episode_id
        self.episode = f"{self.run.prefix}:episode:{episode_id}"
        self.requests = f"{self.episode}:requests"
        self.sample_ids = f"{self.episode}:sample-ids"
        self.groups = f"{self.episode}:groups"
        self.issues = f"{self.episode}:issues"
        self.chunks = f"{self.episode}:chunks"
        self.steps = f"{self.episode}:steps"
        self.selection = f"{self.episode}:selection"
        self.made = f"{self.episode}:made"

    def __str__(self) -> str:
        """For messages."""
        return f"episode {self.episode_id} of run {self.run_id}"


ALL_RUNS = "baton:{*}:episodes"
"""The pattern of the key that every run with an episode has."""


def run_of(key: bytes) -> str:
    """The run id in a key that `ALL_RUNS` matches."""
    return key.decode().removeprefix("baton:{").removesuffix("}:episodes")


def starting_with(prefix: str) -> str:
    """A glob pattern of the keys that do, whatever is in a run's id."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*"
