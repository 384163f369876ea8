"""What a flow works with: prompts, groups of responses, and the verbs of one episode."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np

from baton.clients.rollout import PromptLogprobs, SamplingParams
from baton.samples import RewardStatus, Samples


@dataclass(frozen=True, slots=True)
class PromptItem:
    """One prompt of an episode, ready to be sent.

    `messages` are the chat turns that the model sees, unless there are `token_ids`, which it sees as they are; `text` is the
    prompt as the source gave it (of a chat, the last turn), which reward functions get; `metadata` is the rest of the
    source's record and travels with every sample.
    """

    group_id: str
    messages: list[dict[str, str]]
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    token_ids: Sequence[int] | None = None
    continues: Sequence[int] = ()
    """Tokens that `token_ids` must begin with, or the replica refuses them: see `after`."""

    def after(self, samples: Samples, row: int, further: Sequence[int] = ()) -> Self:
        """The prompt that goes on where response `row` of `samples` ended, token by token, with `further` ones: the next
        turn of a conversation, or none for the rest of a response that was cut off, which `baton.partial.joined` puts
        together. It is named by that response's id."""
        tokens = [*samples.prompt_ids.rows()[row].tolist(), *samples.response_ids.rows()[row].tolist()]
        return replace(self, group_id=samples.sample_ids[row], token_ids=[*tokens, *further], continues=tokens)


@dataclass(frozen=True, slots=True)
class Group:
    """All G responses to one prompt: `samples` [G], `texts` [G], and `scores` [G] by reward function (NaN: no value)."""

    prompt: PromptItem
    samples: Samples
    texts: list[str]
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    prompt_logprobs: PromptLogprobs | None = None
    """If `models.policy.prompt_logprobs` or the flow asks for them."""

    def first(self) -> Self:
        """The group of its first response alone."""
        scores = {name: values[:1] for name, values in self.scores.items()}
        return replace(self, samples=self.samples.take([0]), texts=self.texts[:1], scores=scores)

    def with_rewards(self, values: Sequence[float | None], statuses: Sequence[RewardStatus] | None = None) -> Self:
        """The group with one reward per response. None abstains, and what is no finite number is an error, unless the
        response had no reward before: that keeps its reason. `statuses` [G] tells the reasons instead.

        Raises ValueError if there is not one value for each response.
        """
        if len(values) != len(self.samples):
            raise ValueError(f"group {self.prompt.group_id} has {len(self.samples)} responses but got {len(values)} rewards")
        rewards = np.asarray([np.nan if value is None else value for value in values], np.float32)
        if statuses is None:
            statuses = self._statuses(values)
        scored = replace(self.samples, rewards=rewards, reward_status=np.asarray(statuses, np.uint8))
        return replace(self, samples=scored)

    def _statuses(self, values: Sequence[float | None]) -> list[RewardStatus]:
        before = self.samples.reward_status
        before = [RewardStatus.UNSPECIFIED] * len(values) if before is None else [RewardStatus(status) for status in before]
        given = (RewardStatus.UNSPECIFIED, RewardStatus.VALUE)
        missing = [RewardStatus.ERROR if status in given else status for status in before]
        return [
            RewardStatus.ABSTAIN if value is None else RewardStatus.VALUE if np.isfinite(value) else reason
            for value, reason in zip(values, missing, strict=True)
        ]


class FlowContext(Protocol):
    """What a flow can ask for during one episode.

    Each verb takes groups as they come and yields them as they are done, so that verbs can be strung together:

        async def flow(context, prompts):
            groups = context.reference_logprobs(context.generate(prompts))
            async for group in context.score(groups):
                yield group

    Columns that the run's roles give, and that a flow does not ask for, are added to what it yields.
    """

    episode_id: int
    """0-based."""

    def generate(self, prompts: Sequence[PromptItem], sampling: SamplingParams | None = None) -> AsyncIterator[Group]:
        """Yields each prompt's responses when they are complete. `sampling` overrides the run file's options.

        Raises InvalidRequestError for an override by which the samples would not say of which distribution they are.
        """
        ...

    def score(self, groups: AsyncIterator[Group]) -> AsyncIterator[Group]:
        """Adds rewards: the weighted sum of the reward functions' values and of the reward model's score, if any."""
        ...

    def model_scores(self, groups: AsyncIterator[Group]) -> AsyncIterator[Group]:
        """Adds the score of `models.reward` as `scores["reward_model"]`, and leaves rewards as they are."""
        ...

    def reference_logprobs(self, groups: AsyncIterator[Group]) -> AsyncIterator[Group]:
        """Adds the column `reference_logprobs`, by `models.reference`."""
        ...

    def values(self, groups: AsyncIterator[Group]) -> AsyncIterator[Group]:
        """Adds the column `values`, by the critic as it is now."""
        ...


Flow = Callable[[FlowContext, Sequence[PromptItem]], AsyncIterator[Group]]
"""An async generator function: gets one episode's prompts and yields scored groups, in the order to be trained."""
