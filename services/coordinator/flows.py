"""Flows: from an episode's prompts to scored groups. The default is one turn; an app's engine may bring its own."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from baton.clients.rollout import SamplingParams
from baton.errors import InvalidRequestError
from baton.flow import Flow, FlowContext, Group, PromptItem
from services.coordinator.clock import PhaseClock
from services.coordinator.issues import Issues
from services.coordinator.rewards import RewardPool
from services.coordinator.rollouts import Rollouts
from services.coordinator.scorers import Scorers
from services.coordinator.streams import in_order, map_as_completed


def default_flow(*, in_prompt_order: bool) -> Flow:
    """The flow of a run without one of its own; `in_prompt_order`: a group waits for those of the prompts before its own."""
    return generate_and_score_in_order if in_prompt_order else generate_and_score


async def generate_and_score(context: FlowContext, prompts: Sequence[PromptItem]) -> AsyncIterator[Group]:
    """The default flow: every prompt is answered once; groups are scored while others are still generated."""
    async with aclosing(context.score(context.generate(prompts))) as groups:
        async for group in groups:
            yield group


async def generate_and_score_in_order(context: FlowContext, prompts: Sequence[PromptItem]) -> AsyncIterator[Group]:
    """The same, but the groups come in the order of their prompts, whichever is answered first."""
    order = [item.group_id for item in prompts]
    scored = generate_and_score(context, prompts)
    async with aclosing(in_order(scored, lambda group: group.prompt.group_id, order)) as groups:
        async for group in groups:
            yield group


@dataclass(slots=True)
class EpisodeContext:
    """The FlowContext that the coordinator gives to a flow: one episode."""

    episode_id: int
    published: Mapping[int, str]
    rollouts: Rollouts
    issues: Issues
    rewards: RewardPool
    scorers: Scorers
    clock: PhaseClock
    _generating: int = field(default=0, init=False)

    async def generate(self, prompts: Sequence[PromptItem], sampling: SamplingParams | None = None) -> AsyncIterator[Group]:
        """See FlowContext. The run's phase is "generate" while any generation goes on, then "reward"."""
        stream = self.rollouts.generate(
            prompts, sampling or SamplingParams(), episode_id=self.episode_id, published=self.published,
            lost=self.issues.lost,
        )  # fmt: skip
        self._generating += 1
        self.clock.enter("generate", f"rollout at {', '.join(self.rollouts.outstanding)}")
        try:
            async with aclosing(stream):
                async for group in stream:
                    await self.issues.generated(group.prompt.group_id)
                    yield group
        finally:
            self._generating -= 1
        if not self._generating:
            self.clock.enter("reward", "the reward workers and the models that score")

    def score(self, groups: AsyncIterator[Group]) -> AsyncIterator[Group]:
        """See FlowContext."""
        return map_as_completed(partial(rewarded, self.rewards, self.scorers), groups)

    def model_scores(self, groups: AsyncIterator[Group]) -> AsyncIterator[Group]:
        """See FlowContext."""
        return map_as_completed(self.scorers.model_scores, groups)

    def reference_logprobs(self, groups: AsyncIterator[Group]) -> AsyncIterator[Group]:
        """See FlowContext."""
        return map_as_completed(self.scorers.reference_logprobs, groups)

    def values(self, groups: AsyncIterator[Group]) -> AsyncIterator[Group]:
        """See FlowContext."""
        return map_as_completed(self.scorers.values, groups)


async def rewarded(rewards: RewardPool, scorers: Scorers, group: Group) -> Group:
    """The group with the rewards that the run file says: of functions, of the reward model, or of both."""
    if rewards.functions or not scorers.has_reward:
        group = await rewards.score(group)
    return await scorers.with_model_reward(group) if scorers.has_reward else group


def wrong_total(episode: int, produced: str, expected: int | None) -> InvalidRequestError:
    """The error for a flow that made another number of samples than the episode takes (None: any but zero)."""
    if expected is None:
        return InvalidRequestError(f"the flow produced no samples in episode {episode}; yield at least one scored group")
    return InvalidRequestError(
        f"the flow produced {produced} samples in episode {episode}, but runtime.stream_data_loader_type is fixed, which "
        f"takes runtime.sample_per_episode ({expected}); use dynamic"
    )
