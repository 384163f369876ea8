"""What one replica does: renders prompts, generates under a version, and moves to new weights."""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any

from baton.api.rollout.v1 import control_pb2
from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.api.rollout.v1.control_pb2 import InFlight
from baton.errors import BackpressureError, BatonError, DeadlineError, InvalidRequestError, NotReadyError, StalePolicyError
from baton.samples import Samples
from services.rollout.generation import Completion, Origin, Params, RolloutEngine, to_samples
from services.rollout.prompts import prompt_tokens
from services.rollout.versions import VersionGate
from services.rollout.weight_updates import WeightUpdates

ABORT_S = 30.0
"""How long an aborted group may take to be answered."""


class Replica:
    """One engine and its version."""

    def __init__(self, engine: RolloutEngine, model: str, max_outstanding: int) -> None:
        """Takes on at most so many responses at once."""
        self.model = model
        self.engine = engine
        self.gate = VersionGate()
        self.instance_id = uuid.uuid4().hex
        self.running = 0
        self.generated_tokens = 0
        self._max_outstanding = max_outstanding
        self._dropped = False
        self._groups: dict[asyncio.Task, str] = {}
        self._exact: set[asyncio.Task] = set()  # whose caller wants one version only
        self._updates = WeightUpdates(engine, self.gate, self._clear_the_way)

    async def generate(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        """Yields each group when its last response is done.

        Raises BackpressureError if the replica has as much to do as it may already.
        """
        self.gate.admit(
            request.exact_version if request.HasField("exact_version") else None,
            request.min_version if request.HasField("min_version") else None,
        )
        names = Counter(prompt.group_id for prompt in request.prompts)
        if twice := [name for name, count in names.items() if count > 1]:
            raise InvalidRequestError(
                f"group {twice[0]} is in the request {names[twice[0]]} times; give each prompt its own"
            )
        work = []
        for prompt in request.prompts:
            tokens = prompt_tokens(prompt, self.engine.tokenizer, self.engine.vocabulary, self.model)
            params = self.engine.params(request.sampling, prompt.group_id, len(tokens), evaluation=request.evaluation)
            work.append((prompt.group_id, tokens, params))
        self._check_room(sum(params.n for _, _, params in work))
        exact = request.exact_version if request.HasField("exact_version") else None
        tasks = [asyncio.create_task(self._group(request.episode_id, *item, exact)) for item in work]
        for (group_id, _, params), task in zip(work, tasks, strict=True):
            self._count(task, group_id, params.n)
        if exact is not None:
            self._exact |= set(tasks)
        try:
            for task in asyncio.as_completed(tasks):
                yield await task
        finally:
            for task in tasks:
                task.cancel()

    def measure(self, prompts: Iterable[pb.Prompt]) -> list[int]:
        """What each prompt is ranked by. Raises as `generate` for a prompt that cannot be answered."""
        rendered = (prompt_tokens(prompt, self.engine.tokenizer, self.engine.vocabulary, self.model) for prompt in prompts)
        return [self.engine.length(tokens) for tokens in rendered]

    def begin(
        self, group_id: str, responses: int, work: Coroutine[Any, Any, None], exact: int | None, minimum: int | None
    ) -> asyncio.Task[None]:
        """Has `work` run as a group under way, which generates by itself, under the `exact` or a `minimum` version.

        Raises as the gate's `admit`, and BackpressureError if the replica has as much to do as it may already.
        """
        try:
            self.gate.admit(exact, minimum)
            self._check_room(responses)
        except BatonError:
            work.close()
            raise
        task = asyncio.create_task(work)
        self._count(task, group_id, responses)
        if exact is not None:
            self._exact.add(task)
        return task

    def samples(
        self, group_id: str, episode_id: int, prompt: Sequence[int], completions: Sequence[Completion], temperature: float
    ) -> Samples:
        """What was generated under the weights that were served, and counts it."""
        self.generated_tokens += sum(len(completion.token_ids) for completion in completions)
        served = self._updates.served
        origin = Origin(group_id, episode_id, served, max(served))
        return to_samples(prompt, completions, origin, temperature)

    def check_version(self, exact: int | None) -> None:
        """To be called where a group that was admitted begins: an adapter may be served meanwhile, without a pause. Raises
        StalePolicyError."""
        if exact is not None and exact != self.gate.version:
            raise StalePolicyError(f"version {exact} was asked for, but this replica has come to serve {self.gate.version}")

    def _count(self, task: asyncio.Task, group_id: str, responses: int) -> None:
        """Has the responses counted as running until the task is over."""

        def over(_: asyncio.Task) -> None:
            self.running -= responses
            del self._groups[task]
            self._exact.discard(task)

        self.running += responses
        self._groups[task] = group_id
        task.add_done_callback(over)

    def _check_room(self, responses: int) -> None:
        """A request that is alone is always taken."""
        if self.running and self.running + responses > self._max_outstanding:
            raise BackpressureError(
                f"this replica has {self.running} responses to finish, and {responses} more exceed "
                f"models.policy.max_outstanding_responses ({self._max_outstanding}); send them later, or "
                "to another replica"
            )

    async def _group(
        self, episode_id: int, group_id: str, tokens: list[int], params: Params, exact: int | None
    ) -> pb.GenerateResponse:  # fmt: skip
        self.check_version(exact)
        try:
            answer = await self.engine.generate(group_id, tokens, params)
        except ValueError as error:
            raise InvalidRequestError(f"prompt {group_id}: {error}") from error
        samples = self.samples(group_id, episode_id, tokens, answer.completions, params.temperature)
        message = pb.GenerateResponse(
            samples=samples.to_proto(),
            texts=[completion.text for completion in answer.completions],
        )
        if answer.prompt_logprobs is not None:
            ids, logprobs = answer.prompt_logprobs
            message.prompt_logprobs.add(
                group_id=group_id, columns=ids.shape[1], token_ids=ids.tobytes(), logprobs=logprobs.tobytes()
            )
        return message

    async def _clear_the_way(self, in_flight: InFlight) -> None:
        """Before other weights come: waits for responses under way, ends them, or keeps all that may go on with others."""
        if in_flight == control_pb2.IN_FLIGHT_WAIT and self._groups:
            await asyncio.wait(self._groups)
        if in_flight == control_pb2.IN_FLIGHT_KEEP:
            await self._end(list(self._exact))
        elif self.engine.interruptible:  # all: the engine's own pause would only hold back what has not reached it yet
            await self._end(list(self._groups))

    async def update_weights(self, request: pb.UpdateWeightsRequest) -> pb.UpdateWeightsResponse:
        """Receives a version; see `WeightUpdates`."""
        if request.in_flight == control_pb2.IN_FLIGHT_KEEP:
            self._check_interruptible()
        return await self._updates.receive(request)

    async def commit_weights(self, request: pb.CommitWeightsRequest) -> pb.CommitWeightsResponse:
        """Serves what arrived."""
        return await self._updates.commit(request)

    async def abort(self, group_ids: Sequence[str]) -> int:
        """Ends these groups, all if none is named, and returns how many were under way, when they are answered."""
        self._check_interruptible()
        wanted = set(group_ids) or set(self._groups.values())
        return await self._end([task for task, group_id in self._groups.items() if group_id in wanted])

    async def _end(self, tasks: Sequence[asyncio.Task]) -> int:
        """Aborts these groups, and returns how many they were. Asks again for those that the engine had not begun yet.

        Raises DeadlineError for what goes on for ABORT_S.
        """
        names, waiting, deadline = {self._groups[task] for task in tasks}, set(tasks), time.monotonic() + ABORT_S
        while waiting:
            if time.monotonic() > deadline:
                left = ", ".join(sorted(self._groups[task] for task in waiting))
                raise DeadlineError(f"{left} did not end within {ABORT_S:g} s of being aborted; end its call, or try again")
            await self.engine.abort(sorted(self._groups[task] for task in waiting))
            waiting = (await asyncio.wait(waiting, timeout=0.1))[1]
        return len(names)

    def _check_interruptible(self) -> None:
        if not self.engine.interruptible:
            raise InvalidRequestError(
                "static batches end what they have begun; say IN_FLIGHT_WAIT, or set models.policy.generator to vllm"
            )

    async def pause(self, in_flight: InFlight, timeout_s: float) -> int:
        """Refuses requests from now on. Returns the responses that stand still.

        Raises DeadlineError if those that are waited for take longer than `timeout_s`; the replica stays paused then.
        NotReadyError if it is asleep.
        """
        self._check_awake()
        if in_flight != control_pb2.IN_FLIGHT_WAIT:
            self._check_interruptible()
        self.gate.close(pb.REPLICA_STATE_PAUSED, "it is paused; call Resume")
        if in_flight == control_pb2.IN_FLIGHT_KEEP:
            await self.engine.freeze()
            return self.running
        if in_flight != control_pb2.IN_FLIGHT_WAIT:
            await self._end(list(self._groups))
        if self._groups and (await asyncio.wait(self._groups, timeout=timeout_s))[1]:
            raise DeadlineError(
                f"{self.running} responses still run after {timeout_s:g} s, and the replica stays paused; wait longer, "
                "pause it with IN_FLIGHT_ABORT, or call Resume"
            )
        return 0

    async def resume(self) -> None:
        """Ends a pause; what stood still goes on."""
        self._check_awake()
        if self.gate.closed:
            await self.engine.resume()
            self.gate.open()

    def _check_awake(self) -> None:
        """A pause, or its end, would hide that the engine's memory is not there."""
        if self.gate.state == pb.REPLICA_STATE_ASLEEP:
            raise NotReadyError("this replica is asleep; call Wake")

    async def sleep(self, level: int) -> None:
        """Gives the accelerator's memory back: the weights go to the host's memory (level 1) or away (2)."""
        if level not in (1, 2):
            raise InvalidRequestError(f"level is {level}; 1 keeps the weights in the host's memory, 2 drops them")
        if self.running:
            raise NotReadyError(f"{self.running} responses are under way; call Pause first")
        self.engine.check_sleep()
        self.gate.close(pb.REPLICA_STATE_ASLEEP, "it is asleep; call Wake")
        self._dropped = self._dropped or level == 2  # a second sleep, of whatever level, brings nothing back
        await self.engine.sleep(level)

    async def wake(self) -> None:
        """Takes the memory again; without weights it serves nothing until an update."""
        if self.gate.state != pb.REPLICA_STATE_ASLEEP:
            return
        await self.engine.wake()
        self.gate.open()
        if self._dropped:
            self._updates.forget()
            self.gate.drop("its weights were dropped by a sleep of level 2")
            self._dropped = False

    def _adapter_versions(self) -> list[int]:
        loads, served = self.engine.adapters.loads if self.engine.adapters else [], self._updates.served
        return [served[load][0] for load in loads if load in served]

    def status(self) -> pb.GetStatusResponse:
        """A snapshot."""
        dead, ending = self.engine.dead, self._updates.is_ending
        return pb.GetStatusResponse(
            state=pb.REPLICA_STATE_STALE if dead else self.gate.state,
            policy_version=self.gate.version,
            weights_digest=self.gate.digest,
            model=self.model,
            max_model_len=self.engine.max_model_len,
            workers=self.engine.workers,
            running_requests=self.running,
            generated_tokens=self.generated_tokens,
            state_reason="its engine died" if dead else self.gate.reason + "; its engine is not out of that yet" * ending,
            instance_id=self.instance_id,
            cache_blocks=self.engine.cache_blocks,
            cache_block_tokens=self.engine.cache_block_tokens,
            devices=self.engine.devices,
            model_facts=self.engine.model_facts,
            ending_update=ending,
            base_digest=self._updates.base_digest,
            adapter_versions=self._adapter_versions(),
        )
