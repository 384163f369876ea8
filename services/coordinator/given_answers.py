"""Samples of answers that are given with the prompts: texts to tokens by the trainer's tokenizer, nothing is rolled out.

A pair is two consecutive samples of one group, the chosen answer first, with rewards 1 and 0.
"""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np

from baton.clients.scoring import TextRecord
from baton.config import RunConfig
from baton.config.needs import Paired
from baton.config.task import ReasoningGymPrompts
from baton.config.trainable import MAIN_GROUP
from baton.errors import ConfigError, InvalidRequestError
from baton.flow import Group, PromptItem
from baton.samples import FinishReason, RewardStatus, Samples
from services.coordinator.connections import Connections

PROMPTS_PER_CALL = 256
"""Prompts that are tokenized at a time, so that training begins before all of an episode's are."""


def answer_keys(config: RunConfig) -> tuple[str, ...]:
    """Keys of a prompt's answers in its metadata, in the order of their samples; empty for a run that samples answers."""
    if not config.is_offline:
        return ()
    source = config.prompts
    if isinstance(source, ReasoningGymPrompts):
        return ("answer",)
    return (source.chosen_key, source.rejected_key) if isinstance(config.algorithm, Paired) else (source.completion_key,)


def check_answers(records: Sequence[dict], keys: Sequence[str], algorithm: str) -> None:
    """Raises ConfigError for the first record of which an answer is no text."""
    for index, record in enumerate(records):
        for key in keys:
            if not isinstance(record.get(key), str):
                raise ConfigError(
                    f"prompts: record {index}, from 0, has {str(record.get(key))[:80]!r} as {key!r}; {algorithm} needs a "
                    f"text there; correct it, or name another key in the run file ({', '.join(sorted(record))} are there)"
                )


class GivenAnswers:
    """Makes groups of prompts and their answers."""

    def __init__(self, config: RunConfig, services: Connections) -> None:
        self._keys = answer_keys(config)
        self._services = services
        self._timeout_s = config.deadlines.score_s
        self._limit = config.models.policy.seq_length

    async def groups(self, prompts: Sequence[PromptItem], episode_id: int) -> AsyncIterator[Group]:
        """One group of answers for each prompt, in order. Raises InvalidRequestError for one that is too long."""
        for start in range(0, len(prompts), PROMPTS_PER_CALL):
            some = prompts[start : start + PROMPTS_PER_CALL]
            records = [
                TextRecord(f"{item.group_id}/{place}", item.group_id, item.messages, item.metadata[key])
                for item in some
                for place, key in enumerate(self._keys)
            ]
            with self._services.at_trainer("deadlines.score_s"):
                samples = await self._services.scoring[MAIN_GROUP].tokenize(records, timeout_s=self._timeout_s)
            self._require_short(samples)
            for place, item in enumerate(some):
                first = place * len(self._keys)
                yield self._group(item, samples.take(slice(first, first + len(self._keys))), episode_id)

    def _require_short(self, samples: Samples) -> None:
        tokens = samples.token_counts()
        if (tokens > self._limit).any():
            at = int((tokens > self._limit).argmax())
            raise InvalidRequestError(
                f"prompt and answer {samples.sample_ids[at]} have {tokens[at]} tokens, more than models.policy.seq_length "
                f"({self._limit}); leave that answer out of the data, or raise it as far as the model's context allows"
            )

    def _group(self, item: PromptItem, samples: Samples, episode_id: int) -> Group:
        size = len(samples)
        samples = replace(
            samples,
            episode_ids=np.full(size, episode_id, np.int64),
            rewards=np.arange(size, 0, -1, dtype=np.float32) - 1 if size > 1 else np.ones(1, np.float32),
            reward_status=np.full(size, RewardStatus.VALUE, np.uint8),
            finish_reasons=np.full(size, FinishReason.STOP, np.uint8),
            policy_version_min=np.zeros(size, np.int64),
            policy_version_max=np.zeros(size, np.int64),
            weights_digests=[""] * size,
            temperatures=np.ones(size, np.float32),
            metadata=[json.dumps({k: v for k, v in item.metadata.items() if k not in self._keys})] * size,
        )
        return Group(item, samples, [item.metadata[key] for key in self._keys])
