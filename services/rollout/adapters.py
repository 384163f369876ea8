"""Which adapter a request is computed with, and when an old one is freed.

    arrives beside the one that is served -> served: new requests get it -> another is served: its own go on -> freed

An engine has room for two. So one that nobody is served by any more, but whose responses are not done, is in the way of the
one after the next, and `make_room` says how long.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from baton.errors import DeadlineError, InvalidRequestError, ServiceFaultError
from services.rollout.vllm_adapters import adapter_request, modules_of

log = logging.getLogger(__name__)

ABORT_S = 30.0
"""How long responses may take to end once they are aborted."""

POLL_S = 0.05
"""Between two looks at responses that are waited for, and two abortions of them: the engine may not know them yet."""


@dataclass(slots=True, eq=False)
class Adapter:
    """One that the engine holds."""

    load: int
    """Number of the set of weights that it came as."""
    request: LoRARequest
    under_way: set[str] = field(default_factory=set)
    """Request ids."""


class Adapters:
    """One engine's."""

    def __init__(self, llm: AsyncLLM, abort: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        """`abort` ends requests by id."""
        self._llm = llm
        self._abort = abort
        self._held: dict[int, Adapter] = {}
        self._arrived: Adapter | None = None
        self._served: Adapter | None = None
        self._freeing: set[asyncio.Task[None]] = set()

    @property
    def loads(self) -> list[int]:
        """Of those that requests are, or may be, computed with, oldest first."""
        return [load for load, adapter in self._held.items() if adapter is not self._arrived]

    @contextmanager
    def using(self, request_id: str) -> Iterator[Adapter | None]:
        """Around a request: the adapter that it has from its begin to its end; None while there is none."""
        adapter = self._served
        if adapter is None:
            yield None
            return
        adapter.under_way.add(request_id)
        try:
            yield adapter
        finally:
            adapter.under_way.discard(request_id)
            if not adapter.under_way and adapter is not self._served:
                self._free_soon()

    async def load(self, load: int, names: Sequence[str], multiplier: float) -> list[dict[str, Any]]:
        """Has every worker register what it staged, the adapter of these tensors, and returns their reports.

        Raises ServiceFaultError if one cannot, InvalidRequestError if vLLM adapts none of a tensor's modules.
        """
        self._held[load] = self._arrived = adapter = Adapter(load, adapter_request(load))
        try:
            reports = await self._llm.collective_rpc("baton_load_adapter", args=(load, multiplier))
            if causes := [report["error"] for report in reports if "error" in report]:
                raise ServiceFaultError(f"{len(causes)} of {len(reports)} workers did not take the adapter: {causes[0]}")
            if lost := sorted(modules_of(names) - {name for report in reports for name in report["adapted"]}):
                raise InvalidRequestError(
                    f"vLLM cannot adapt {len(lost)} of the modules that were sent ({', '.join(lost[:3])}); set "
                    "models.ppo_policy.lora.sync to merged, or leave their kind out of lora_layer"
                )
        except BaseException:
            if self._arrived is adapter:
                self._arrived = None
            raise
        return reports

    def serve(self, load: int) -> None:
        """Requests that begin from now on get what arrived as that number; those of the one before keep it."""
        self._served, self._arrived = self._held[load], None
        self._free_soon()

    def forget(self) -> None:
        """All are gone from the engine, with the weights below them. Nothing may be under way."""
        self._held.clear()
        self._arrived = self._served = None

    async def make_room(self, drain_s: float | None) -> None:
        """Frees all but the one that is served. Responses of others may go on for `drain_s` (None: until the caller's own
        deadline), and are aborted then. Raises DeadlineError if that does not end them within ABORT_S."""
        self._arrived, begun = None, time.monotonic()
        while late := self._late():
            spent = time.monotonic() - begun
            if drain_s is not None and spent >= drain_s:
                if spent > drain_s + ABORT_S:
                    raise DeadlineError(f"responses of an older adapter did not end within {ABORT_S:g} s of being aborted")
                await self._abort(late)
            await asyncio.sleep(POLL_S)
        await self._free_idle()

    def _late(self) -> list[str]:
        """Requests under way of adapters that are not served any more."""
        return [name for adapter in self._held.values() if adapter is not self._served for name in adapter.under_way]

    async def _free_idle(self) -> None:
        idle = [
            load for load, adapter in self._held.items()
            if not adapter.under_way and adapter not in (self._served, self._arrived)
        ]  # fmt: skip
        for load in idle:
            del self._held[load]  # first: no one else frees it meanwhile
        if idle:
            await self._llm.collective_rpc("baton_drop_adapters", args=(idle,))

    def _free_soon(self) -> None:
        task = asyncio.create_task(self._free_idle())
        self._freeing.add(task)
        task.add_done_callback(self._freed)

    def _freed(self, task: asyncio.Task[None]) -> None:
        self._freeing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("an adapter that nobody uses could not be freed: %s", error)
