"""What serves what: the objects of the buffer, put together on one store."""

import grpc

from baton.api.buffer.v1.ledger_pb2_grpc import add_LedgerServiceServicer_to_server
from baton.api.buffer.v1.relay_pb2_grpc import add_RelayServiceServicer_to_server
from services.buffer.audit import Audit
from services.buffer.checkpoints import Checkpoints
from services.buffer.chunks import Chunks
from services.buffer.groups import Groups
from services.buffer.history import History
from services.buffer.inspection import Inspection
from services.buffer.leases import Leases
from services.buffer.ledger import Ledger
from services.buffer.ledger_servicer import LedgerServicer
from services.buffer.limits import Limits
from services.buffer.relay_servicer import RelayServicer
from services.buffer.rollback import RollBack
from services.buffer.selection import Selections
from services.buffer.servicer import BufferServicer, add_buffer_service
from services.buffer.state import RunState
from services.buffer.store import Store
from services.buffer.training_set import TrainingSets


def add_services(server: grpc.aio.Server, store: Store, limits: Limits) -> None:
    """Registers BufferService, RelayService and LedgerService."""
    chunks = Chunks(store)
    sets = TrainingSets(store, chunks)
    inspection = Inspection(store, chunks)
    rollback = RollBack(store, sets)
    buffer = BufferServicer(Ledger(store, chunks, sets, limits), Leases(store, sets, limits), inspection, rollback)
    relay = RelayServicer(History(store, chunks, sets), Selections(store, limits))
    ledger = LedgerServicer(
        Groups(store, limits), Checkpoints(store, inspection), rollback, inspection, Audit(store, chunks, inspection),
        RunState(store),
    )  # fmt: skip
    add_buffer_service(buffer, server)
    add_RelayServiceServicer_to_server(relay, server)
    add_LedgerServiceServicer_to_server(ledger, server)
