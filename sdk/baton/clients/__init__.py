"""Typed async clients, one per gRPC service. `blocking(client)` gives the same methods without `await`."""

from baton.clients.blocking import blocking
from baton.clients.buffer import BufferClient
from baton.clients.coordinator import CoordinatorClient
from baton.clients.ledger import LedgerClient
from baton.clients.loop import LoopClient
from baton.clients.relay import RelayClient
from baton.clients.rollout import RolloutClient
from baton.clients.rollout_control import RolloutControlClient
from baton.clients.rollout_recording import RolloutRecordingClient
from baton.clients.scoring import ScoringClient
from baton.clients.trainer import TrainerClient

__all__ = [
    "BufferClient", "CoordinatorClient", "LedgerClient", "LoopClient", "RelayClient", "RolloutClient",
    "RolloutControlClient", "RolloutRecordingClient", "ScoringClient", "TrainerClient", "blocking",
]  # fmt: skip
