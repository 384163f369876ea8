"""How far a run is between two episodes: what a checkpoint says of it besides the weights.

It lies in the checkpoint's marker, so that one rename makes both last. A resumed run is brought back to it: the store, the
replicas and the metrics follow, whatever they have seen since.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from services.coordinator.report import EpisodeReport
from services.coordinator.state import RunState


@dataclass(frozen=True, slots=True)
class Position:
    """See RunState for the fields that it has too."""

    run_id: str
    between_episodes: bool
    """Whether the weights are those of whole episodes; else a run cannot go on from here."""
    episode: int
    """The next one."""
    global_step: int
    prompts_consumed: int
    policy_version: int
    weights_digest: str
    published_step: int
    """Optimizer step whose weights `policy_version` is; -1: none was published."""
    digests: dict[int, str]
    elapsed_s: float
    seconds: dict[str, float] = field(default_factory=dict)
    """In each phase since the run began."""
    report: EpisodeReport | None = None
    """Of the episode before, as far as it is known: its row is written after the checkpoint."""
    history_from: int | None = None
    """Oldest episode that the relay function has seen last and sees again in the next one; None: none."""
    history_version: int | None = None

    @property
    def history(self) -> range:
        """The episodes that the relay function sees again."""
        return range(self.episode if self.history_from is None else self.history_from, self.episode)

    def to_json(self) -> str:
        """All fields."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_mapping(cls, known: dict[str, Any]) -> Self:
        """What `to_json` wrote."""
        report = known["report"] and EpisodeReport(**known["report"])
        digests = {int(version): digest for version, digest in known["digests"].items()}
        return cls(**known | {"digests": digests, "report": report})

    def restore(self, state: RunState) -> None:
        """Makes the state what it was, but for what is told of this coordinator."""
        state.episode, state.global_step = self.episode, self.global_step
        state.prompts_consumed = self.prompts_consumed
        state.policy_version, state.weights_digest = self.policy_version, self.weights_digest
        state.digests, state.history_version = dict(self.digests), self.history_version
        state.started_at = time.time() - self.elapsed_s
