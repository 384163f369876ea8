"""The proof of a run that goes on while it is looked at."""

from typing import Any

from buffer_samples import make_samples

from baton.clients import BufferClient
from processes import ServiceProcess, StoreProcess
from services.buffer.audit import Audit
from services.buffer.chunks import Chunks
from services.buffer.inspection import Inspection
from services.buffer.keys import RunKeys
from services.buffer.store import Store


class Overtaken(Store):
    """Before its first look at the optimizer steps, a step that it has seen leased is acknowledged."""

    async def call(self, *command: Any) -> Any:
        if command[0] == "ZRANGE" and command[1].endswith(":global-steps") and (acknowledge := self.acknowledge):
            self.acknowledge = None
            await acknowledge()
        return await super().call(*command)


async def test_a_step_that_is_trained_during_the_proof_is_no_fault(store: StoreProcess, buffer: ServiceProcess, run_id: str):
    reads = Overtaken(store.url, retry_s=20.0)
    async with BufferClient(buffer.address, timeout_s=20) as client:
        await client.open_episode(run_id, 0, expected_samples=None, global_batch_size=4, micro_batch_size=2)
        await client.put(run_id, 0, make_samples(range(4)))
        (first, *_) = [batch async for batch in client.lease(run_id, 0, pass_index=0, step_index=0)]
        reads.acknowledge = lambda: client.ack(run_id, 0, first.lease_id, global_step=1)
        chunks = Chunks(reads)
        report = await Audit(reads, chunks, Inspection(reads, chunks)).run(RunKeys(run_id))
    await reads.close()
    assert (report.faults, report.optimizer_steps) == ([], 1)
