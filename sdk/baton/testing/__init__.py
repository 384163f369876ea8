"""Fakes of the services that hold models, for unit tests of what talks to them; served over real gRPC on a free port.

    async with serve(FakeTrainer()) as trainer, serve(FakeRollout(respond=lambda prompt, index, version: "7")) as rollout:
        ...  # trainer.address, rollout.address

They obey the contract: exact versions, digests that are committed before they are served, weights that travel from one to
the other, and leases that are acknowledged. The buffer and the coordinator need no fakes: start the real ones.
"""

from baton.testing.rollout import FakeRollout
from baton.testing.scoring import FakeScoring
from baton.testing.serve import Served, serve
from baton.testing.trainer import FakeTrainer

__all__ = ["FakeRollout", "FakeScoring", "FakeTrainer", "Served", "serve"]
