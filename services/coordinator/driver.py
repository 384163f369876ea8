"""The run: the one place that decides what happens when.

    prompts --> rollouts --> rewards --> models that score --> buffer <--> relay function
       |           ^                          ^                  |
       |           |  weights, version v + 1  |                  |  leased by the ranks
       |           +-------- publish <--- trainer <--------------+
       +--> given answers, tokenized --------^

    one episode:  make prompts | generate, score, put, and train each step whose samples are there | close |
                  choose, if it is relayed | train what is left | publish | commit | checkpoint | evaluate | report

Samples pass through here once, as columns; weights never do. Every sample carries the policy version and the digest that
were committed for it. Consumes: prompts and services' answers. Produces: RunState, events, reports. Waits for: one service
at a time, named in `RunState.waiting_for`, never longer than the run file's deadlines. Unblocked by: that service, its death
(liveness), or a stop.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

from baton.config import RunConfig
from baton.config.trainable import MAIN_GROUP
from baton.engine import Engine
from baton.flow import Group, PromptItem
from baton.publication import Publication
from services.coordinator.arrivals import Arrivals
from services.coordinator.clock import PhaseClock
from services.coordinator.connections import Connections, until_ready
from services.coordinator.error_budget import ErrorBudget
from services.coordinator.evaluation import Evaluation
from services.coordinator.events import EventLog
from services.coordinator.fleet import Fleet
from services.coordinator.flows import EpisodeContext, default_flow
from services.coordinator.given_answers import GivenAnswers
from services.coordinator.groups import named_apart
from services.coordinator.intake import Intake
from services.coordinator.position import Position
from services.coordinator.prompts import Prompts, build_prompts, made_aside
from services.coordinator.publishing import Publishing
from services.coordinator.relay import Relay
from services.coordinator.report import EpisodeReport, EpisodeTally, RunReport, brief
from services.coordinator.resuming import Resume, Resuming
from services.coordinator.rewards import RewardPool, reward_functions
from services.coordinator.rollouts import Rollouts
from services.coordinator.saving import Saving
from services.coordinator.scorers import Scorers
from services.coordinator.state import Life, RunState, StateStore
from services.coordinator.steps import Steps

log = logging.getLogger(__name__)


class Driver:
    """One run's verbs, and the loop that strings them together. Every method raises what ends the run."""

    def __init__(
        self, config: RunConfig, engine: Engine, services: Connections, state: RunState, report: RunReport,
        resume: Resume | None = None,
    ) -> None:  # fmt: skip
        """With `resume` the run goes on from one of its checkpoints. Raises ConfigError if run file and engine together do
        not make a run."""
        self.state = state
        self.report = report
        self.events = EventLog()
        self.clock = PhaseClock(state, self.events)
        self.fleet = Fleet(services.rollouts, return_s=config.deadlines.restart_s)
        self.publishing = Publishing(services, self.fleet, state, config.deadlines)
        self._config = config
        self._engine = engine
        self._services = services
        self._store = StateStore(services.ledger, state.run_id)
        self._budget = ErrorBudget(config.rewards.max_error_rate)
        self._intake = Intake(config, services, state.run_id, self.clock, self._budget)
        self._steps = Steps(config, services, self.publishing, state, self.clock, report)
        self._relay = Relay(config, engine, services, state.run_id)
        self.saving = Saving(config, services, self.publishing, state, self.clock, report.folder, self._relay)
        self._resume = resume
        self._resuming = Resuming(config, services, state, self._store, self.clock, report)
        functions, reward_s = reward_functions(config, engine), config.deadlines.reward_s
        self._rewards = RewardPool(functions, config.rewards, self._budget, deadline_s=reward_s)
        self._rollouts = Rollouts(
            self.fleet,
            batch_size=config.prompts_per_request,
            group_size=config.group_size,
            timeout_s=config.deadlines.generate_s,
            max_attempts=config.store.max_attempts,
            ranking=config.models.policy.batch_generation.ranking,
        )
        self._scorers = Scorers(config, services, self._budget)
        self._answers = GivenAnswers(config, services)
        self._evaluation = Evaluation(
            config, services, state, self.clock, report, self._scorers, self._rewards, self._rollouts, self._intake.issues,
            self._budget,
        )
        self._prompts: Prompts
        self._position: Position | None = None
        self._served: list[int] = []
        self._reproducible = False

    async def episodes(self) -> None:
        """The first version of the weights, then all episodes; or from a checkpoint on. Where answers are given, no
        weights are published."""
        if self._position is None:
            await self._publish_if_due(0)
            self.state.life = Life.RUNNING
            await self._evaluation.if_due(0, self._prompts.held_out())
        else:
            await self._go_on(self._position)
        self.clock.lap()  # the first episode begins now
        for episode in range(self.state.episode, self._config.runtime.num_episode):
            prompts = await self._next_prompts(episode)
            tally = EpisodeTally(rolled_out=not self._config.is_offline)
            self.saving.between_episodes = False
            sampled_from = (self.state.policy_version, self.state.weights_digest)
            if self._config.runtime.relays(episode):
                await self._fill(episode, prompts, tally)
                await self._train_chosen(episode, tally)
            else:
                await self._fill_and_train(episode, prompts, tally)
            await self.save()
            publication = await self._publish_if_due(episode + 1)
            await self._commit(episode)
            known = EpisodeReport(episode, *sampled_from, tally.metrics(self.clock.so_far(), publication))
            await self.saving.checkpoint_if_due(episode + 1, known)
            tally.add_metrics(await self._evaluation.if_due(episode + 1, self._prompts.held_out()))
            self._report(EpisodeReport(episode, *sampled_from, tally.metrics(self.clock.lap(), publication)))

    async def prepare(self) -> None:
        """What comes before everything else: prompts, reward workers, services that answer."""
        startup_s = self._config.deadlines.startup_s
        self.clock.begin("start", "the prompts")
        self._prompts = await asyncio.to_thread(build_prompts, self._config, self._engine)
        self.clock.begin("start", "the reward workers")
        await self._rewards.start(startup_s)
        services, resume, checkpoint = self._services, self._resume, None
        self.clock.begin("start", services.buffer_name)
        if resume is None:
            await until_ready(services.buffer_name, lambda: self._store.claim(self.state), startup_s)
        else:
            taking = partial(self._resuming.take_over, resume)
            checkpoint, self._position = await until_ready(services.buffer_name, taking, startup_s)
        await self._until_models_are_ready(startup_s)
        if self._position is None:
            self.state.prompts_consumed = self._config.prompts_of(self._config.runtime.consumed_samples)
        else:
            await self._resuming.restore(checkpoint, self._position)
            self.saving.resumed(self._position)
        self.clock.begin("start", "the tools that get the metrics")
        await asyncio.to_thread(self.report.open, self._config.logging, self.state.run_id)

    async def _until_models_are_ready(self, startup_s: float) -> None:
        services, devices = self._services, set()
        for replica in services.rollouts:
            self.clock.begin("start", f"rollout at {replica.address}")
            status = await until_ready(f"rollout at {replica.address}", replica.get_status, startup_s)
            self._served.append(status.policy_version)
            devices |= set(status.devices)
        for group, trainer in services.trainers.items():
            self.clock.begin("start", services.group_name(group))
            status = await until_ready(services.group_name(group), trainer.get_status, startup_s)
            if group == MAIN_GROUP and self._position is None:
                self.state.global_step = status.global_step
        wished = self._config.runtime.reproducible
        devices = devices or {self._config.models.ppo_policy.device}  # an offline run has no replicas
        self._reproducible = devices == {"cpu"} if wished is None else wished
        if self._reproducible:
            self._rollouts.seed = self._config.runtime.seed
            self._scorers.ask_alone()

    async def _go_on(self, position: Position) -> None:
        """What else is to be as it was: the version that replicas serve, and what the last episode has not written."""
        if position.policy_version:
            self.clock.begin("publish", f"{self._services.trainer_name} and {self._services.rollout_names}")
            await self.publishing.restore(position, self._served)
        else:  # the checkpoint is from before the first version
            await self._publish_if_due(0)
        self.state.life = Life.RUNNING
        known, last = self.report.evaluation(position.episode), position.report
        if known is None:
            found = await self._evaluation.if_due(position.episode, self._prompts.held_out())
        else:
            found = {f"eval/{name}": value for name, value in known.items()}
        if last is not None and all(one.episode_id != last.episode_id for one in self.report.episodes):
            self._report(replace(last, metrics=last.metrics | found))

    async def finish(self) -> str:
        """What comes after the last episode: a checkpoint and an export. Returns the export's directory."""
        await self.saving.checkpoint()
        return await self.saving.export()

    @property
    def may_write(self) -> bool:
        """Whether state and reports are this driver's: not those of a run that it could not take over."""
        return self._resume is None or self._store.is_ours

    async def save(self) -> None:
        """Stores the state."""
        with self._services.at_buffer():
            await self._store.save(self.state)

    async def close(self) -> None:
        """Ends the reward workers and the channels."""
        await self.saving.close()
        await self._rewards.close()
        await self._services.close()

    async def _next_prompts(self, episode: int) -> list[PromptItem]:
        """They count as consumed once they are all there: a checkpoint before that is one between episodes."""
        self.clock.begin("prompts", "the prompts")
        position, count = self.state.prompts_consumed, self._config.prompts_per_episode
        prompts = await made_aside(self._prompts.take(position, count, episode))
        self.state.prompts_consumed += count
        return prompts

    async def _fill_and_train(self, episode: int, prompts: list[PromptItem], tally: EpisodeTally) -> None:
        """Trains each step of the first pass as soon as its samples are stored, then the other passes.

        With a critic, training begins when all samples are stored: their values are by its weights at the episode's start.
        """
        arrivals, first = Arrivals(self._intake.expected), self.state.policy_version
        async with asyncio.TaskGroup() as tasks:
            filling = tasks.create_task(self._fill(episode, prompts, tally, arrivals))
            if self._scorers.has_values:
                await filling
            steps = await self._steps.as_they_arrive(episode, arrivals, first, tally)
        tally.add_metrics(tally.ages(self.state.policy_version))
        await self._steps.passes(1, episode, steps, self._steps.versions_since(first), tally)

    async def _train_chosen(self, episode: int, tally: EpisodeTally) -> None:
        """Trains what the relay function chooses from the history, which the episode is part of now."""
        self.clock.begin("relay", "the relay function")
        relayed = await self._relay.choose(episode, self.state.policy_version, self.state.digests)
        self.state.history_version = relayed.oldest_shown
        tally.add_metrics(relayed.metrics)
        await self._steps.passes(0, episode, relayed.steps, relayed.policy_versions, tally)

    async def _fill(
        self, episode: int, prompts: list[PromptItem], tally: EpisodeTally, arrivals: Arrivals | None = None
    ) -> None:  # fmt: skip
        """Puts every group as soon as it is made and has what the run's models say of it, then closes the episode."""
        if self._config.is_offline:
            self.clock.begin("read", self._services.trainer_name)
            groups = self._answers.groups(prompts, episode)
        else:
            self.clock.begin("generate", self._services.rollout_names)
            groups = self._flow(episode, prompts)
        await self._intake.open(episode, [prompt.group_id for prompt in prompts])
        await self._intake.put_all(episode, self._scorers.complete(named_apart(groups)), tally, arrivals)

    def _flow(self, episode: int, prompts: list[PromptItem]) -> AsyncIterator[Group]:
        sources = len(self._rewards.functions) + self._scorers.has_reward
        self._budget.begin(len(prompts) * self._config.group_size, sources)
        context = EpisodeContext(
            episode, self.state.digests, self._rollouts, self._intake.issues, self._rewards,
            self._scorers, self.clock,
        )  # fmt: skip
        in_order = self._reproducible or self._config.in_prompt_order(episode)
        flow = self._engine.flow or default_flow(in_prompt_order=in_order)
        return flow(context, prompts)

    async def _publish_if_due(self, finished_episodes: int) -> Publication | None:
        """Makes the trainer's weights the next version on all replicas."""
        frequency = self._config.models.policy.sync_frequency
        if self._config.is_offline or not frequency or finished_episodes % frequency:
            return None
        self.clock.begin("publish", f"{self._services.trainer_name} and {self._services.rollout_names}")
        publication = await self.publishing.next_version(self._served)
        await self.save()
        return publication

    async def _commit(self, episode: int) -> None:
        """From here on the episode is done, and a look at the state says so."""
        self.clock.begin("commit", self._services.buffer_name)
        await self.saving.episode_done(episode)
        self.state.episode, self.saving.between_episodes = episode + 1, True
        await self.save()

    def _report(self, report: EpisodeReport) -> None:
        self.report.add(report)
        self.clock.enter("")
        self.events.append(self.state, report)
        log.info("episode %d: %s", report.episode_id, brief(report.metrics))
