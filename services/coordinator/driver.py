"""The run: the one place that decides what happens when.

    prompts --> rollouts --> rewards --> group statistics --> buffer <--> relay function
                   ^                                             |
                   |  weights, version v + 1                     |  leased by the ranks
                   +----------- publish <--- trainer <-----------+

    one episode:  generate, score, put, and train each step whose samples are there | close | choose, if it is relayed |
                  train what is left | publish | commit | report | checkpoint

Samples pass through here once, as columns; weights never do. Every sample carries the policy version and the digest that
were committed for it. Consumes: prompts and services' answers. Produces: RunState, events, reports. Waits for: one service
at a time, named in `RunState.waiting_for`, never longer than the run file's deadlines. Unblocked by: that service, its death
(liveness), or a stop.
"""

import asyncio
import logging
from collections.abc import Collection
from contextlib import aclosing
from dataclasses import replace

from baton.config import RunConfig
from baton.engine import Engine, Group, PromptItem
from baton.errors import ServiceFaultError
from baton.weights import Publication
from services.coordinator.arrivals import Arrivals
from services.coordinator.clock import PhaseClock
from services.coordinator.connections import Connections, until_ready
from services.coordinator.events import EventLog
from services.coordinator.fleet import Fleet
from services.coordinator.flows import EpisodeContext, default_flow, wrong_total
from services.coordinator.groups import named_apart, with_group_statistics
from services.coordinator.issues import Issues
from services.coordinator.prompts import Prompts, build_prompts
from services.coordinator.publishing import Publishing
from services.coordinator.relay import Relay
from services.coordinator.report import EpisodeReport, EpisodeTally, RunReport, brief
from services.coordinator.rewards import RewardPool, reward_functions
from services.coordinator.rollouts import Rollouts
from services.coordinator.state import Life, RunState, StateStore

log = logging.getLogger(__name__)


class StopAsked(Exception):
    """A stop was asked for, and this is a place to stop at."""


class Driver:
    """One run's verbs, and the loop that strings them together. Every method raises what ends the run."""

    def __init__(self, config: RunConfig, engine: Engine, services: Connections, state: RunState, report: RunReport) -> None:
        """Raises ConfigError if run file and engine together do not make a run."""
        self.state = state
        self.report = report
        self.events = EventLog()
        self.clock = PhaseClock(state, self.events)
        self.fleet = Fleet(services.rollouts, return_s=config.deadlines.restart_s)
        self.publishing = Publishing(services, self.fleet, state, config.deadlines.publish_s)
        self.rollouts = Rollouts(
            self.fleet, batch_size=config.prompts_per_request, group_size=config.group_size,
            timeout_s=config.deadlines.generate_s, max_attempts=config.store.max_attempts,
        )  # fmt: skip
        self.stop_asked = False
        """Set to have the run end with StopAsked before the next call that must not be cut off."""
        self._config = config
        self._engine = engine
        self._services = services
        self._store = StateStore(services.ledger, state.run_id)
        self._relay = Relay(config, engine, services.relay, state.run_id)
        self._issues = Issues(services, state.run_id, timeout_s=config.deadlines.generate_s)
        self._rewards = RewardPool(reward_functions(config, engine), config.rewards, deadline_s=config.deadlines.reward_s)
        self._prompts: Prompts
        self._saved_step = -1
        self._unconfirmed: list[int] = []
        dynamic = config.runtime.stream_data_loader_type == "dynamic" or config.models.policy.n > 1
        self._expected = None if dynamic else config.runtime.sample_per_episode

    async def episodes(self) -> None:
        """Version 1 of the weights, then all episodes."""
        await self._publish_if_due(0)
        self.state.life = Life.RUNNING
        self.clock.lap()  # episode 0 begins now
        for episode in range(self._config.runtime.num_episode):
            tally = EpisodeTally()
            sampled_from = (self.state.policy_version, self.state.weights_digest)
            prompts = self._next_prompts(episode)
            if self._config.runtime.relays(episode):
                await self._roll_out(episode, prompts, tally)
                await self._train_chosen(episode, tally)
            else:
                await self._roll_out_and_train(episode, prompts, tally)
            publication = await self._publish_if_due(episode + 1)
            await self._commit(episode)
            await self._checkpoint_if_due(episode + 1)
            self._report(EpisodeReport(episode, *sampled_from, tally.metrics(self.clock.lap(), publication)))

    async def prepare(self) -> None:
        """What comes before everything else: prompts, reward workers, services that answer."""
        startup_s = self._config.deadlines.startup_s
        self._enter("start", "the prompts")
        self._prompts = await asyncio.to_thread(build_prompts, self._config, self._engine)
        self._enter("start", "the reward workers")
        await self._rewards.start(startup_s)
        services = self._services
        self._enter("start", services.buffer_name)
        await until_ready(services.buffer_name, lambda: self._store.claim(self.state), startup_s)
        for replica in services.rollouts:
            self._enter("start", f"rollout at {replica.address}")
            await until_ready(f"rollout at {replica.address}", replica.get_status, startup_s)
        self._enter("start", services.trainer_name)
        status = await until_ready(services.trainer_name, services.trainer.get_status, startup_s)
        self.state.global_step = status.global_step
        self.state.prompts_consumed = self._config.runtime.consumed_samples // self._config.runtime.num_inference_per_prompt

    async def finish(self) -> str:
        """What comes after the last episode: a checkpoint and an export. Returns the export's directory."""
        folder = self.report.folder / "export"
        await self.checkpoint()
        self._enter("export", self._services.trainer_name)
        async with self.publishing.trainer:
            with self._services.at_trainer("deadlines.checkpoint_s"):
                await self._services.trainer.export_model(str(folder), timeout_s=self._config.deadlines.checkpoint_s)
        return str(folder)

    async def checkpoint(self) -> None:
        """Has the trainer write one, unless the newest is of the present step."""
        if self._saved_step == self.state.global_step:
            return
        self._enter("checkpoint", self._services.trainer_name)
        folder, checkpoint_s = str(self.report.folder / "checkpoints"), self._config.deadlines.checkpoint_s
        async with self.publishing.trainer:
            with self._services.at_trainer("deadlines.checkpoint_s"):
                saved = await self._services.trainer.save_checkpoint(folder, timeout_s=checkpoint_s)
        self.state.checkpoint, self._saved_step = saved.path, self.state.global_step
        if self._config.store.ack_on == "checkpoint":
            with self._services.at_buffer():
                await self._services.ledger.confirm_trained(self.state.run_id, self.state.global_step)
            await self._free_episodes()

    async def save(self) -> None:
        """Stores the state."""
        with self._services.at_buffer():
            await self._store.save(self.state)

    async def close(self) -> None:
        """Ends the reward workers and the channels."""
        await self._rewards.close()
        await self._services.close()

    def _enter(self, phase: str, waiting_for: str) -> None:
        if self.stop_asked:
            raise StopAsked
        self.clock.enter(phase, waiting_for)

    def _next_prompts(self, episode: int) -> list[PromptItem]:
        position, count = self.state.prompts_consumed, self._config.prompts_per_episode
        self.state.prompts_consumed += count
        return self._prompts.take(position, count, episode)

    async def _roll_out_and_train(self, episode: int, prompts: list[PromptItem], tally: EpisodeTally) -> None:
        """Trains each step of the first pass as soon as its samples are stored, then the other passes."""
        arrivals, first = Arrivals(self._expected), self.state.policy_version
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._roll_out(episode, prompts, tally, arrivals))
            steps = 0
            async for step in arrivals.steps(self._config.runtime.global_batch_size):
                await self._train_step(episode, 0, step, self._versions_since(first), tally)
                steps = step + 1
        await self._train_passes(1, episode, steps, self._versions_since(first), tally)

    def _versions_since(self, first: int) -> range:
        """Of one episode's samples: one version, unless that was lost with all replicas and the next one took its place."""
        return range(first, self.state.policy_version + 1)

    async def _train_chosen(self, episode: int, tally: EpisodeTally) -> None:
        """Trains what the relay function chooses from the history, which the episode is part of now."""
        self._enter("relay", "the relay function")
        with self._services.at_buffer():
            relayed = await self._relay.choose(episode, self.state.policy_version)
        tally.add_metrics(relayed.metrics)
        await self._train_passes(0, episode, relayed.steps, relayed.policy_versions, tally)

    async def _roll_out(
        self, episode: int, prompts: list[PromptItem], tally: EpisodeTally, arrivals: Arrivals | None = None
    ) -> None:  # fmt: skip
        """Puts every group as soon as the flow yields it, then closes the episode."""
        runtime, services = self._config.runtime, self._services
        self._enter("generate", services.rollout_names)
        with services.at_buffer():
            await services.buffer.open_episode(
                self.state.run_id, episode, expected_samples=self._expected, relayed=runtime.relays(episode),
                global_batch_size=runtime.global_batch_size, micro_batch_size=runtime.train_micro_batch_size,
                passes=runtime.num_training_epoch,
            )  # fmt: skip
        await self._issues.begin(episode, [prompt.group_id for prompt in prompts])
        self._rewards.begin_episode(len(prompts) * self._config.group_size)
        policy = self._config.models.policy
        context = EpisodeContext(episode, policy, self.state.digests, self.rollouts, self._issues, self._rewards, self.clock)
        flow = self._engine.flow or default_flow(in_prompt_order=self._config.in_prompt_order(episode))
        async with aclosing(named_apart(flow(context, prompts))) as groups:
            async for group in groups:
                await self._put(episode, group, tally)
                if arrivals is not None:
                    arrivals.stored(tally.samples)
        if tally.samples < (self._expected or 1):
            raise wrong_total(episode, f"only {tally.samples}", self._expected)
        self.clock.enter("put", services.buffer_name)
        await self._issues.end()
        with services.at_buffer():
            await services.buffer.close_episode(self.state.run_id, episode)
        self.clock.enter("")
        if arrivals is not None:
            arrivals.closed(tally.samples)

    async def _put(self, episode: int, group: Group, tally: EpisodeTally) -> None:
        group = replace(group, samples=with_group_statistics(group.samples))
        tally.add_group(group)
        if self._expected is not None and tally.samples > self._expected:
            raise wrong_total(episode, f"more than {self._expected}", self._expected)
        with self._services.at_buffer():
            await self._services.buffer.put(self.state.run_id, episode, group.samples, request_id=group.prompt.group_id)
        self._issues.put(group.prompt.group_id)

    async def _train_passes(
        self, first: int, episode: int, steps: int, versions: Collection[int], tally: EpisodeTally
    ) -> None:  # fmt: skip
        for pass_index in range(first, self._config.runtime.num_training_epoch):
            for step_index in range(steps):
                await self._train_step(episode, pass_index, step_index, versions, tally)
        await self.save()

    async def _train_step(
        self, episode: int, pass_index: int, step_index: int, versions: Collection[int], tally: EpisodeTally
    ) -> None:  # fmt: skip
        """One optimizer step on samples of these policy versions."""
        if self.stop_asked:
            raise StopAsked
        services = self._services
        async with self.publishing.trainer:
            with self.clock.over("train", services.trainer_name), services.at_trainer("deadlines.train_step_s"):
                step = await services.trainer.train_step(
                    self.state.run_id, episode, pass_index=pass_index, step_index=step_index,
                    buffer_address=services.buffer.address,
                    expected_digests={v: self.state.digests[v] for v in versions if v in self.state.digests},
                    timeout_s=self._config.deadlines.train_step_s,
                )  # fmt: skip
            self._check_step(step.global_step)
        tally.add_step(step.metrics, step.computed_tokens)
        if step.global_step % self._config.runtime.log_interval == 0:
            log.info("step %d: %s", step.global_step, brief(step.metrics))

    def _check_step(self, global_step: int) -> None:
        """Raises ServiceFaultError if the trainer is not where this run left it: its weights are other ones then."""
        expected = self.state.global_step + 1
        if global_step != expected:
            raise ServiceFaultError(
                f"{self._services.trainer_name} took optimizer step {global_step}, but step {expected} was due; it was "
                "restarted, or somebody else trains with it; start the run anew with a trainer of its own"
            )
        self.state.global_step = global_step

    async def _publish_if_due(self, finished_episodes: int) -> Publication | None:
        """Makes the trainer's weights the next version on all replicas."""
        frequency = self._config.models.policy.sync_frequency
        if not frequency or finished_episodes % frequency:
            return None
        self._enter("publish", f"{self._services.trainer_name} and {self._services.rollout_names}")
        publication = await self.publishing.next_version()
        await self.save()
        return publication

    async def _commit(self, episode: int) -> None:
        """From here on the episode is done, and a look at the state says so; its samples are freed once that is for good."""
        self._enter("commit", self._services.buffer_name)
        self._unconfirmed.append(episode)
        if self._config.store.ack_on == "step":
            await self._free_episodes()
        self.state.episode = episode + 1
        await self.save()

    async def _free_episodes(self) -> None:
        with self._services.at_buffer():
            while self._unconfirmed:
                await self._services.buffer.delete_episode(self.state.run_id, self._unconfirmed[0])
                del self._unconfirmed[0]

    async def _checkpoint_if_due(self, finished_episodes: int) -> None:
        interval = self._config.runtime.save_episode_interval
        if interval and finished_episodes % interval == 0:
            await self.checkpoint()

    def _report(self, report: EpisodeReport) -> None:
        self.report.add(report)
        self.clock.enter("")
        self.events.append(self.state, report)
        log.info("episode %d: %s", report.episode_id, brief(report.metrics))
