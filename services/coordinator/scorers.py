"""The models that judge samples, in the trainer's groups: `reference`, the critic, and `reward`.

Groups come one by one while the rollout goes on. While a model is at work on some, the next ones gather, and go as one. In a
reproducible run each goes alone: the last bits of an answer depend on what it is computed together with.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from baton.clients import ScoringClient
from baton.config import RunConfig
from baton.config.trainable import MAIN_GROUP
from baton.errors import ConfigError, RunFailedError
from baton.flow import Group
from baton.samples import Ragged, RewardStatus, Samples
from services.coordinator.connections import Connections, blame
from services.coordinator.error_budget import ErrorBudget
from services.coordinator.streams import map_in_order

Column = TypeVar("Column", Ragged, np.ndarray)

MODEL_SCORE = "reward_model"
"""Name of the reward model among a group's scores."""


class Scorers:
    """What the roles of one run say of samples. Errors name the trainer group and its address."""

    def __init__(self, config: RunConfig, services: Connections, budget: ErrorBudget) -> None:
        models = config.models
        self._budget = budget
        self._services = services
        self._timeout_s = config.deadlines.score_s
        self._model_weight = config.rewards.model_weight
        self._reference = self._role(models.reference, "reference", ScoringClient.compute_logprobs)
        self._values = self._role(models.ppo_value, "", ScoringClient.compute_values)
        self._scores = self._role(models.reward, "reward", ScoringClient.compute_scores)

    def ask_alone(self) -> None:
        """From now on no two groups are asked about in one call."""
        for role in (self._reference, self._values, self._scores):
            if role is not None:
                role.alone = True

    @property
    def has_reward(self) -> bool:
        """Whether a reward model gives rewards, or a part of them."""
        return self._scores is not None

    @property
    def has_values(self) -> bool:
        """Whether samples get values of the critic that they train."""
        return self._values is not None

    async def reference_logprobs(self, group: Group) -> Group:
        """Adds the column. Raises ConfigError if the run has no such role."""
        logprobs = await _asked(self._reference, "reference")(group.samples)
        return replace(group, samples=replace(group.samples, reference_logprobs=logprobs))

    async def values(self, group: Group) -> Group:
        """Adds the column, by the critic as it is now. Raises ConfigError if the run has none."""
        return replace(group, samples=replace(group.samples, values=await _asked(self._values, "ppo_value")(group.samples)))

    async def model_scores(self, group: Group) -> Group:
        """Adds the reward model's scores, not yet as rewards. Raises ConfigError if the run has no such model."""
        scores_G = await _asked(self._scores, "reward")(group.samples)
        return replace(group, scores={**group.scores, MODEL_SCORE: scores_G.astype(np.float64)})

    async def with_model_reward(self, group: Group) -> Group:
        """Adds the reward model's weighted score to the group's rewards, or makes it the reward. One that is not finite is
        an error of its sample; raises RunFailedError if too many are."""
        group = await self.model_scores(group)
        scores_G, size = group.scores[MODEL_SCORE], len(group.samples)
        for score, sample_id in zip(scores_G, group.samples.sample_ids, strict=True):
            self._budget.count("" if np.isfinite(score) else f"models.reward gave sample {sample_id} the score {score}")
        others_G, status_G = group.samples.rewards, group.samples.reward_status
        if others_G is None:
            others_G, status_G = np.zeros(size), np.full(size, RewardStatus.VALUE, np.uint8)
        status_G = np.where(np.isfinite(scores_G), status_G, RewardStatus.ERROR)
        return group.with_rewards(list(others_G + self._model_weight * scores_G), list(status_G))

    def complete(self, groups: AsyncIterator[Group]) -> AsyncIterator[Group]:
        """Adds the columns that the run's roles give and that a group lacks, in the order of the groups."""
        if self._reference is None and self._values is None:
            return groups
        return map_in_order(self._completed, groups)

    async def _completed(self, group: Group) -> Group:
        if self._reference is not None and group.samples.reference_logprobs is None:
            group = await self.reference_logprobs(group)
        if self._values is not None and group.samples.values is None:
            group = await self.values(group)
        return group

    def _role(self, role: object, name: str, method: Callable[..., Awaitable[Column]]) -> "Together | None":
        if role is None:
            return None
        group = getattr(role, "group", MAIN_GROUP)
        ask = partial(method, self._services.scoring[group], role=name, timeout_s=self._timeout_s)

        async def blamed(samples: Samples) -> Column:
            with blame(self._services.group_name(group), "deadlines.score_s"):
                column = await ask(samples)
            if isinstance(column, Ragged):
                _require_finite(column, samples, name or "ppo_value")
            return column

        return Together(blamed)


def _require_finite(column: Ragged, samples: Samples, role: str) -> None:
    """Raises RunFailedError for a number that would make the step's whole gradient none."""
    finite_N = np.isfinite(column.values)
    if not finite_N.all():
        at = int(finite_N.argmin())
        sample_id = samples.sample_ids[int(np.searchsorted(column.offsets, at, side="right")) - 1]
        raise RunFailedError(
            f"models.{role} says {column.values[at]} of a token of sample {sample_id}, which no step could learn from; look "
            f"at the model's weights, and whether models.{role}.dtype can hold what they make of that sample"
        )


def _asked(verb: "Together | None", role: str) -> "Together":
    if verb is None:
        raise ConfigError(f"models.{role}: is missing, but the flow asks for it; add the section")
    return verb


class Together:
    """Asks about samples one call at a time; samples that come during a call go together in the next."""

    def __init__(self, ask: Callable[[Samples], Awaitable[Column]]) -> None:
        self.alone = False
        """Whether each call's samples go alone, in the order of the calls."""
        self._ask = ask
        self._turn = asyncio.Lock()
        self._waiting: list[tuple[Samples, asyncio.Future[Column]]] = []

    async def __call__(self, samples: Samples) -> Column:
        """The column of these samples alone."""
        read = Samples(
            samples.sample_ids, prompt_ids=samples.prompt_ids, response_ids=samples.response_ids,
            temperatures=samples.temperatures,
        )  # fmt: skip
        mine: asyncio.Future[Column] = asyncio.get_running_loop().create_future()
        self._waiting.append((read, mine))
        try:
            async with self._turn:
                while not mine.done():
                    await self._take_all()
            return mine.result()
        finally:
            self._waiting = [entry for entry in self._waiting if entry[1] is not mine]

    async def _take_all(self) -> None:
        taken = [(samples, answer) for samples, answer in self._waiting if not answer.done()]
        taken = taken[:1] if self.alone else taken
        column = await self._ask(Samples.concat([samples for samples, _ in taken]))
        start = 0
        for samples, answer in taken:
            part = slice(start, start + len(samples))
            answer.set_result(column.take(part) if isinstance(column, Ragged) else column[part])
            start = part.stop
