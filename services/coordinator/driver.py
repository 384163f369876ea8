"""The run: the one place that decides what happens when.

    prompts --> rollouts --> rewards --> group statistics --> buffer
                   ^                                             |
                   |  weights, version v + 1                     |  leased by the ranks
                   +----------- publish <--- trainer <-----------+

    one episode:  prompts, generate, score, put | close | train each pass and step | publish | commit | report | checkpoint

Samples pass through here once, as columns; weights never do. Every sample carries the policy version and the digest that
were committed for it. Consumes: prompts and services' answers. Produces: RunState, events, reports. Waits for: one service
at a time, named in `RunState.waiting_for`, never longer than the run file's deadlines. Unblocked by: that service, its death
(liveness), or a stop.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace

from baton.config import RunConfig
from baton.engine import Engine, Group, PromptItem
from baton.errors import InvalidRequestError, ServiceFaultError
from baton.weights import Publication
from services.coordinator.clock import PhaseClock
from services.coordinator.connections import Connections, blame, until_ready
from services.coordinator.events import EventLog
from services.coordinator.flows import EpisodeContext, generate_and_score
from services.coordinator.groups import with_group_statistics
from services.coordinator.prompts import Prompts, build_prompts
from services.coordinator.report import EpisodeReport, EpisodeTally, RunReport
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
        self.rollouts = Rollouts(
            services.rollouts,
            batch_size=config.generation_batch_size("policy"),
            group_size=config.group_size,
            timeout_s=config.deadlines.generate_s,
        )
        self.stop_asked = False
        """Set to have the run end with StopAsked before the next call that must not be cut off."""
        self._config = config
        self._engine = engine
        self._services = services
        self._store = StateStore(services.buffer, state.run_id)
        self._flow = engine.flow or generate_and_score
        self._rewards = RewardPool(reward_functions(config, engine), config.rewards, deadline_s=config.deadlines.reward_s)
        self._prompts: Prompts
        self._saved_step = -1
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
            await self._generate_and_score(episode, prompts, tally)
            steps = await self._close(episode, tally)
            await self._train(episode, steps, tally)
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
        with self._services.at_trainer("deadlines.checkpoint_s"):
            await self._services.trainer.export_model(str(folder), timeout_s=self._config.deadlines.checkpoint_s)
        return str(folder)

    async def checkpoint(self) -> None:
        """Has the trainer write one, unless the newest is of the present step."""
        if self._saved_step == self.state.global_step:
            return
        self._enter("checkpoint", self._services.trainer_name)
        with self._services.at_trainer("deadlines.checkpoint_s"):
            saved = await self._services.trainer.save_checkpoint(
                str(self.report.folder / "checkpoints"), timeout_s=self._config.deadlines.checkpoint_s
            )
        self.state.checkpoint, self._saved_step = saved.path, self.state.global_step

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

    async def _generate_and_score(self, episode: int, prompts: list[PromptItem], tally: EpisodeTally) -> None:
        """Puts every group as soon as the flow yields it."""
        runtime = self._config.runtime
        self._enter("generate", self._services.rollout_names)
        with self._services.at_buffer():
            await self._services.buffer.open_episode(
                self.state.run_id, episode, expected_samples=self._expected,
                global_batch_size=runtime.global_batch_size, micro_batch_size=runtime.train_micro_batch_size,
            )  # fmt: skip
        self._rewards.begin_episode(len(prompts) * self._config.group_size)
        context = EpisodeContext(
            episode, self.state.policy_version, self.state.digests, self.rollouts, self._rewards, self.clock
        )
        async with aclosing(self._flow(context, prompts)) as groups:
            async for group in groups:
                await self._put(episode, group, tally)

    async def _put(self, episode: int, group: Group, tally: EpisodeTally) -> None:
        group = replace(group, samples=with_group_statistics(group.samples))
        tally.add_group(group)
        if self._expected is not None and tally.samples > self._expected:
            raise _wrong_total(episode, f"more than {self._expected}", self._expected)
        with self._services.at_buffer():
            await self._services.buffer.put(self.state.run_id, episode, group.samples, request_id=group.prompt.group_id)

    async def _close(self, episode: int, tally: EpisodeTally) -> int:
        """Ends the episode's rollout. Returns the optimizer steps of one pass over it."""
        if tally.samples < (self._expected or 1):
            raise _wrong_total(episode, f"only {tally.samples}", self._expected)
        self._enter("put", self._services.buffer_name)
        with self._services.at_buffer():
            _, steps = await self._services.buffer.close_episode(self.state.run_id, episode)
        await self.save()
        return steps

    async def _train(self, episode: int, steps: int, tally: EpisodeTally) -> None:
        version = self.state.policy_version
        for pass_index in range(self._config.runtime.num_training_epoch):
            for step_index in range(steps):
                self._enter("train", self._services.trainer_name)
                with self._services.at_trainer("deadlines.train_step_s"):
                    step = await self._services.trainer.train_step(
                        self.state.run_id, episode, pass_index=pass_index, step_index=step_index,
                        buffer_address=self._services.buffer.address,
                        expected_digests={version: self.state.digests[version]},
                        timeout_s=self._config.deadlines.train_step_s,
                    )  # fmt: skip
                self._check_step(step.global_step)
                tally.add_step(step.metrics, step.computed_tokens)
                if step.global_step % self._config.runtime.log_interval == 0:
                    log.info("step %d: %s", step.global_step, _brief(step.metrics))
        await self.save()

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
        version = self.state.policy_version + 1
        publishing = f"{self._services.trainer_name} to {self._services.rollout_names}"
        with blame(f"publishing weights version {version} from {publishing}", "deadlines.publish_s"):
            publication = await self._services.publisher.publish(version, timeout_s=self._config.deadlines.publish_s)
        self.state.published(version, publication.weights_digest)
        await self.save()
        return publication

    async def _commit(self, episode: int) -> None:
        """From here on the episode is done: its samples are freed, and a look at the state says so."""
        self._enter("commit", self._services.buffer_name)
        with self._services.at_buffer():
            await self._services.buffer.delete_episode(self.state.run_id, episode)
        self.state.episode = episode + 1
        await self.save()

    async def _checkpoint_if_due(self, finished_episodes: int) -> None:
        interval = self._config.runtime.save_episode_interval
        if interval and finished_episodes % interval == 0:
            await self.checkpoint()

    def _report(self, report: EpisodeReport) -> None:
        self.report.add(report)
        self.clock.enter("")
        self.events.append(self.state, report)
        log.info("episode %d: %s", report.episode_id, _brief(report.metrics))


def _wrong_total(episode: int, produced: str, expected: int | None) -> InvalidRequestError:
    if expected is None:
        return InvalidRequestError(f"the flow produced no samples in episode {episode}; yield at least one scored group")
    return InvalidRequestError(
        f"the flow produced {produced} samples in episode {episode}, but runtime.stream_data_loader_type is fixed, which "
        f"takes runtime.sample_per_episode ({expected}); use dynamic"
    )


def _brief(metrics: Mapping[str, float]) -> str:
    names = ("reward_mean", "loss", "grad_norm", "mismatch_kl", "response_length_mean", "seconds/episode")
    return ", ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
