"""One run's services on this machine: started in order, watched, ended together.

    store -> buffer |
    rollout replicas | -> coordinator
    trainer groups  |

Replicas that share a GPU with a trainer group start after it: what is taken of the card while they measure it, vLLM would
count as theirs.

A service that has an address in the run file runs elsewhere: it is not started, only checked. An external coordinator
brings its own services, so then nothing is started at all. A replica that dies is started again; the death of any other
service ends all.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from baton.api.coordinator.v1 import coordinator_pb2 as pb
from baton.clients import CoordinatorClient
from baton.config.groups import TrainerGroup, service_name
from baton.errors import BatonError, ServiceFaultError
from baton.local import commands, devices
from baton.local.health import wait_serving
from baton.local.plan import Plan
from baton.local.process_tree import start_time
from baton.local.processes import Child, Probe, kill_all, ready_file_probe
from baton.local.restarts import Restarted
from baton.local.run_directory import DeploymentRecord, ServiceRecord
from baton.local.store import ping_probe, prepare_server

COORDINATOR_HEAD_START_S = 1.0
"""How much earlier the coordinator is told to stop, so that its services do not vanish under its work."""
STOP_RUN_S = 5.0
"""How long a run may take to end by itself when the deployment is told to stop."""
WATCH_S = 0.1
Start = Coroutine[Any, Any, str]
"""Of a service; its address."""
_ACTIVE = {pb.RUN_STATE_STARTING, pb.RUN_STATE_RUNNING, pb.RUN_STATE_STOPPING}


class Deployment:
    """The processes of one run. `stop` or `kill` must be called in the end, also when `start` fails."""

    def __init__(self, plan: Plan, note: Callable[[str], None] = lambda line: None) -> None:
        """`note` gets one line for each service that is ready."""
        self.plan = plan
        self.coordinator: str | None = None
        self.record = DeploymentRecord(plan.run_id, os.getpid(), start_time(os.getpid()), app=plan.app)
        self._children: list[Child] = []
        self._restarted: dict[str, Restarted] = {}
        self._gpus = devices.place(plan.config, devices.machine_gpus())
        self._note = note

    async def start(self) -> None:
        """Starts everything and waits until it answers; `coordinator` is its address then.

        Raises ServiceFaultError as soon as a process ends, DeadlineError if one is not ready in time, and
        ServiceUnavailableError if an external one is not there.
        """
        self.plan.directory.write_record(self.record)
        await self.while_alive(self._start())

    async def while_alive(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs `work` while all services live, as `watch` means it. Raises ServiceFaultError if one ends before it."""
        working, watching = asyncio.ensure_future(work), asyncio.ensure_future(self.watch())
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if working.done() and working.exception():  # a lost connection may be the sign of a process that just died
                await asyncio.wait({watching}, timeout=5 * WATCH_S)
            return (watching if watching.done() else working).result()
        finally:
            await _cancel(working, watching)

    async def watch(self) -> NoReturn:
        """Starts replicas again that die. Raises ServiceFaultError when another service ends without being asked to, or
        when the last replica cannot be started any more."""
        while True:
            for child in self._children:
                if child.name not in self._restarted:
                    child.check()
            for name, service in list(self._restarted.items()):
                await self._poll(name, service)
            await asyncio.sleep(WATCH_S)

    async def stop_run(self) -> None:
        """Asks the coordinator to end the run that is active, if any, and gives it STOP_RUN_S seconds."""
        if self.coordinator is None:
            return
        try:
            async with asyncio.timeout(STOP_RUN_S), CoordinatorClient(self.coordinator, timeout_s=STOP_RUN_S) as client:
                status = await client.get_run()
                if status.state in _ACTIVE:
                    await client.stop_run(status.run_id)
                while status.state in _ACTIVE:
                    await asyncio.sleep(WATCH_S)
                    status = await client.get_run()
        except (BatonError, TimeoutError) as error:  # it is ended anyway
            self._note(f"the run did not end by itself: {error or f'still at work after {STOP_RUN_S:g} s'}")

    async def stop(self) -> None:
        """Ends all services: the coordinator first, the store last. Nothing is left afterwards."""
        by_name = {child.name: child for child in self._children}
        for child in self._children:
            child.expect_end()
        coordinator, store = by_name.pop("coordinator", None), by_name.pop("store", None)
        stops: set[asyncio.Task[None]] = set()
        if coordinator:
            stops.add(asyncio.ensure_future(coordinator.stop()))
            await asyncio.wait(stops, timeout=COORDINATOR_HEAD_START_S)
        await asyncio.gather(*stops, *(child.stop() for child in by_name.values()))
        if store:
            await store.stop()

    def kill(self) -> None:
        """Ends at once whatever is left, and removes what it leaves half written."""
        kill_all(self._children)
        if any(child.name == "trainer" for child in self._children):  # one elsewhere may still be writing
            self.plan.directory.remove_half_written()

    async def _start(self) -> None:
        config = self.plan.config
        services = config.services
        if services.coordinator_address:
            self.coordinator = await self._external("coordinator", services.coordinator_address)
            return
        replicas = (services.rollout_addresses or [None] * config.rollout_replicas)[: config.rollout_replicas]
        groups = config.trainer_groups()

        def first() -> list[Start]:
            return [self._buffer(), *(self._trainer(group) for group in groups.values())]

        def engines() -> list[Start]:
            return [self._rollout(index, address) for index, address in enumerate(replicas)]

        if devices.shared(self._gpus):
            buffer, *others = [*await _together(*first()), *await _together(*engines())]
        else:
            buffer, *others = await _together(*first(), *engines())
        trainers, rollouts = dict(zip(groups, others, strict=False)), others[len(groups) :]
        directory = self.plan.directory
        command = commands.coordinator_command(
            config, directory.run_file, directory.ready_file("coordinator"), app=self.plan.app, output_dir=directory.path,
            buffer=buffer, trainers=trainers, rollouts=rollouts,
        )  # fmt: skip
        self.coordinator = await self._service("coordinator", command)

    async def _buffer(self) -> str:
        config, directory = self.plan.config, self.plan.directory
        if config.services.buffer_address:
            return await self._external("buffer", config.services.buffer_address)
        store_url = config.store.url or await self._store()
        command = commands.buffer_command(config, directory.run_file, directory.ready_file("buffer"), store_url)
        return await self._service("buffer", command)

    async def _trainer(self, group: TrainerGroup) -> str:
        config, directory, name = self.plan.config, self.plan.directory, service_name(group.name)
        if address := config.services.address_of(group.name):
            return await self._external(name, address)
        command = commands.trainer_command(config, directory.run_file, directory.ready_file(name), group)
        return await self._service(name, command, commands.thread_environment(group.leader.omp_threads))

    async def _rollout(self, replica: int, address: str | None) -> str:
        config, directory, name = self.plan.config, self.plan.directory, f"rollout-{replica}"
        if address:
            return await self._external(name, address)
        ready_file = directory.ready_file(name)
        command = commands.rollout_command(config, directory.run_file, ready_file, replica)
        launch = partial(self._launch, name, command, commands.thread_environment(config.models.policy.omp_threads))
        child = launch()
        address = await self._ready(child, ready_file_probe(ready_file))
        self._restarted[name] = Restarted(child, launch, ready_file, config.deadlines.startup_s, self._note)
        return address

    async def _poll(self, name: str, service: Restarted) -> None:
        """A replica that is given up stays away, unless it is the last one."""
        try:
            if facts := await service.poll():
                self._record(name, ServiceRecord.of(facts["pid"], facts["address"], service.child.log))
        except ServiceFaultError as error:
            if len(self._restarted) == 1:
                raise
            self._note(f"{error}\n{name} is given up; the run goes on without it")
            service.child.expect_end()
            del self._restarted[name]

    async def _store(self) -> str:
        url, command = prepare_server(self.plan.config.store, self.plan.directory.path)
        child = self._launch("store", command)
        return await self._ready(child, ping_probe(url, child))

    async def _service(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
        child = self._launch(name, command, env)
        return await self._ready(child, ready_file_probe(self.plan.directory.ready_file(name)))

    def _launch(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> Child:
        placed = {devices.VARIABLE: self._gpus[name]} if name in self._gpus else {}
        child = Child(name, command, self.plan.directory.log(name), env={**(env or {}), **placed})
        self._children = [*(other for other in self._children if other.name != name), child]
        return child

    async def _ready(self, child: Child, probe: Probe) -> str:
        """Waits until `child` is ready, and records it. Returns its address."""
        facts = await child.wait_ready(probe, self.plan.config.deadlines.startup_s)
        if "rest_address" in facts:
            self.record.dashboard_url = f"http://{facts['rest_address']}"
        self._record(child.name, ServiceRecord.of(facts["pid"], facts["address"], child.log))
        return facts["address"]

    async def _external(self, name: str, address: str) -> str:
        await wait_serving(name, address, self.plan.config.deadlines.startup_s)
        self._record(name, ServiceRecord(address=address))
        return address

    def _record(self, name: str, service: ServiceRecord) -> None:
        self.record.services[name] = service
        self.plan.directory.write_record(self.record)
        self._note(f"{name} is ready at {service.address}")


async def _together(*starts: Start) -> list[str]:
    """Runs `starts` side by side. The first that fails ends the others, and its error is raised."""
    tasks = [asyncio.ensure_future(start) for start in starts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _cancel(*tasks)


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
