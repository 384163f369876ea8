"""What is known of a weight update that was committed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baton.api.common.v1 import weights_pb2
from baton.api.rollout.v1 import rollout_pb2
from baton.api.trainer.v1 import trainer_pb2


@dataclass(frozen=True, slots=True)
class Publication:
    """One committed weight update: seconds per phase are the slowest participant's. Phases overlap."""

    policy_version: int
    weights_digest: str
    bytes: int
    gather_s: float
    """Collecting the trainer's shards, and converting them to the type in which they travel."""
    wire_s: float
    """A receiver's waiting for the wire."""
    load_s: float
    digest_s: float
    verify_s: float
    """Comparing bit for bit; 0 if that was not asked for."""
    transfer_s: float
    """All of the above, as they overlap, on the slowest receiver."""
    pause_s: float
    """How long an engine served nothing."""
    total_s: float
    """From the call to the commit."""
    transports: tuple[str, ...]
    """By what the weights came, each once: "ipc", "nccl" or "gloo"."""
    direct: bool
    """Whether they went straight into all engines' parameters, and not through an engine's own loader."""
    verified_bytes: int
    """Bytes of an engine's parameters that were compared bit for bit."""
    committed: tuple[str, ...]
    """Addresses of the replicas that serve it; one that vanished after it had received all is left out."""
    base_bytes: int = 0
    """Of the weights below the adapter, if replicas had to get those first; the other figures are without them."""

    @property
    def gigabytes_per_s(self) -> float:
        """Of the transfer, in 10^9 bytes."""
        return self.bytes / self.transfer_s / 1e9 if self.transfer_s else 0.0


def summary(
    version: int,
    sent: trainer_pb2.PublishWeightsResponse,
    received: Sequence[rollout_pb2.UpdateWeightsResponse],
    commits: Mapping[str, rollout_pb2.CommitWeightsResponse],
    total_s: float,
    base_bytes: int = 0,
) -> Publication:
    """Of the answers of all sides; the commits' are by address."""
    phases = [sent.phases, *(arrived.phases for arrived in received)]
    return Publication(
        version,
        sent.weights_digest,
        sent.bytes,
        gather_s=sent.phases.gather_s,
        wire_s=max(arrived.phases.wire_s for arrived in received),
        load_s=max(spent.load_s for spent in (*phases, *commits.values())),
        digest_s=max(phase.digest_s for phase in phases),
        verify_s=max(phase.verify_s for phase in phases),
        transfer_s=max(arrived.phases.total_s for arrived in received),
        pause_s=max(commit.pause_s for commit in commits.values()),
        total_s=total_s,
        transports=tuple(sorted({transport for arrived in received for transport in arrived.transports})),
        direct=all(arrived.path == weights_pb2.LOAD_PATH_DIRECT for arrived in received),
        verified_bytes=min((arrived.verified_bytes for arrived in received), default=0),
        committed=tuple(commits),
        base_bytes=base_bytes,
    )
