"""Evaluations: what the present weights make of prompts that are not trained on.

Of a run with a rollout: rewards of answers that are sampled by the `eval_` options. Of a run on given answers: the
algorithm's loss on them, and of pairs how often the better one is preferred.
"""

import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing

import numpy as np

from baton.clients.rollout import SamplingParams
from baton.config import RunConfig
from baton.config.algorithm import DpoConfig, RewardModelConfig
from baton.config.sampling import EVALUATION_TWINS
from baton.config.trainable import MAIN_GROUP
from baton.flow import Group, PromptItem
from baton.samples import FinishReason, Ragged, RewardStatus, Samples
from services.coordinator.clock import PhaseClock
from services.coordinator.connections import Connections
from services.coordinator.error_budget import ErrorBudget
from services.coordinator.flows import rewarded
from services.coordinator.given_answers import GivenAnswers
from services.coordinator.issues import Issues
from services.coordinator.prompts import made_aside
from services.coordinator.report import RunReport, mean_of_finite
from services.coordinator.rewards import RewardPool
from services.coordinator.rollouts import Rollouts
from services.coordinator.scorers import Scorers
from services.coordinator.state import RunState
from services.coordinator.streams import map_as_completed

log = logging.getLogger(__name__)

NO_EPISODE = -1
"""Of held-out answers: they are of no episode."""


class Evaluation:
    """The evaluations of one run, at the interval of the run file and before the first episode."""

    def __init__(
        self, config: RunConfig, services: Connections, state: RunState, clock: PhaseClock, report: RunReport,
        scorers: Scorers, rewards: RewardPool, rollouts: Rollouts, issues: Issues,
        budget: ErrorBudget,
    ) -> None:  # fmt: skip
        self._interval = config.runtime.eval_episode_interval
        self._services = services
        self._state = state
        self._clock = clock
        self._report = report
        self._prompts: list[PromptItem] | None = None
        self._measure = (
            HeldOutAnswers(config, services, scorers) if config.is_offline
            else HeldOutPrompts(config, state, scorers, rewards, rollouts, issues, budget)
        )  # fmt: skip

    async def if_due(self, finished_episodes: int, held_out: Iterator[PromptItem]) -> dict[str, float]:
        """`eval/NAME` -> value; empty between evaluations. The prompts are made for the first one, and kept."""
        if not self._interval or finished_episodes % self._interval:
            return {}
        services = self._services
        if self._prompts is None:
            self._clock.begin("evaluate", "the held-out prompts")
            self._prompts = await made_aside(held_out)
        self._clock.begin("evaluate", services.rollout_names if services.rollouts else services.trainer_name)
        metrics = await self._measure(finished_episodes, self._prompts)
        self._report.add_evaluation(self._state.global_step, finished_episodes, metrics)
        log.info("after %d episodes: %s", finished_episodes, ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
        return {f"eval/{name}": value for name, value in metrics.items()}


class HeldOutPrompts:
    """Answers to held-out prompts, one each, and their rewards."""

    def __init__(
        self, config: RunConfig, state: RunState, scorers: Scorers, rewards: RewardPool, rollouts: Rollouts, issues: Issues,
        budget: ErrorBudget,
    ) -> None:  # fmt: skip
        policy, twin = config.models.policy, config.models.policy.for_evaluation()
        options = {name: getattr(twin, name) for name in EVALUATION_TWINS}
        differing = {name: value for name, value in options.items() if value != getattr(policy, name)}
        self._sampling = SamplingParams(n=policy.n if policy.use_beam_search else 1, **differing)  # a beam is as wide
        self._state = state
        self._scorers = scorers
        self._rewards = rewards
        self._rollouts = rollouts
        self._issues = issues
        self._budget = budget

    async def __call__(self, finished_episodes: int, prompts: Sequence[PromptItem]) -> dict[str, float]:
        """Reward in all and by function, and length."""
        self._budget.begin(len(prompts), len(self._rewards.functions) + self._scorers.has_reward)
        answers = self._rollouts.generate(
            prompts, self._sampling, episode_id=finished_episodes, published=self._state.digests, lost=self._issues.lost
        )
        scored = map_as_completed(self._scored, answers)
        async with aclosing(scored) as stream:
            groups = [group async for group in stream]
        samples = Samples.concat([group.samples for group in groups])
        rewards = samples.rewards[samples.reward_status == RewardStatus.VALUE]
        found = {
            "reward": mean_of_finite(rewards),
            "response_length": mean_of_finite(samples.response_ids.lengths),
            "finish_rate": mean_of_finite(samples.finish_reasons == FinishReason.STOP),
        }
        for name in groups[0].scores:
            found[f"reward/{name}"] = mean_of_finite(np.concatenate([group.scores[name] for group in groups]))
        return found

    async def _scored(self, group: Group) -> Group:
        return await rewarded(self._rewards, self._scorers, group.first())


class HeldOutAnswers:
    """The algorithm's loss on given answers, by models that the trainer holds."""

    def __init__(self, config: RunConfig, services: Connections, scorers: Scorers) -> None:
        self._algorithm = config.algorithm
        self._timeout_s = config.deadlines.score_s
        self._services = services
        self._scorers = scorers
        self._answers = GivenAnswers(config, services)
        self._samples: Samples | None = None

    async def __call__(self, finished_episodes: int, prompts: Sequence[PromptItem]) -> dict[str, float]:
        """Loss, and of pairs accuracy and margin."""
        if self._samples is None:
            groups: AsyncIterator[Group] = self._scorers.complete(self._answers.groups(prompts, NO_EPISODE))
            self._samples = Samples.concat([group.samples async for group in groups])
        client, samples = self._services.scoring[MAIN_GROUP], self._samples
        with self._services.at_trainer("deadlines.score_s"):
            if isinstance(self._algorithm, RewardModelConfig):
                scores_S = await client.compute_scores(samples, role="ppo_policy", timeout_s=self._timeout_s)
                return score_metrics(scores_S, self._algorithm)
            logprobs = await client.compute_logprobs(samples, timeout_s=self._timeout_s)
        if isinstance(self._algorithm, DpoConfig):
            return preference_metrics(logprobs, samples.reference_logprobs, self._algorithm)
        if self._algorithm.loss_normalization == "sequence":
            return {"loss": -mean_of_finite([row.mean() for row in logprobs.rows() if len(row)])}
        return {"loss": -float(logprobs.values.mean(dtype=np.float64))}


def preference_metrics(logprobs: Ragged, reference: Ragged, config: DpoConfig) -> Mapping[str, float]:
    """DPO's or IPO's loss on pairs, chosen first; the margin of the implied rewards, and how often it is positive."""
    ratios = Ragged(logprobs.values - reference.values.astype(np.float64), logprobs.lengths)
    ratio_S = np.array([row.sum() for row in ratios.rows()])
    average = config.loss == "ipo" if config.length_average is None else config.length_average
    score_S = ratio_S / np.maximum(logprobs.lengths, 1) if average else ratio_S
    z_P, margin_P = score_S[0::2] - score_S[1::2], config.beta * (ratio_S[0::2] - ratio_S[1::2])
    if config.loss == "ipo":
        loss_P = (z_P - 1 / (2 * config.beta)) ** 2
    else:
        wrong = config.label_smoothing
        loss_P = (1 - wrong) * np.logaddexp(0, -config.beta * z_P) + wrong * np.logaddexp(0, config.beta * z_P)
    return {"loss": float(loss_P.mean()), "accuracy": float((margin_P > 0).mean()), "margin": float(margin_P.mean())}


def score_metrics(scores_S: np.ndarray, config: RewardModelConfig) -> Mapping[str, float]:
    """The reward model's loss on pairs of scores, chosen first; their margin, and how often it is positive."""
    chosen_P, rejected_P = scores_S[0::2].astype(np.float64), scores_S[1::2].astype(np.float64)
    margin_P = chosen_P - rejected_P
    loss_P = np.logaddexp(0, -margin_P) + config.center_coef * (chosen_P + rejected_P) ** 2
    return {"loss": float(loss_P.mean()), "accuracy": float((margin_P > 0).mean()), "margin": float(margin_P.mean())}
