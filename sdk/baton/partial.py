"""Responses that were cut off and go on later: on any replica, from exactly the tokens that they have.

cut = ...                                     # samples with FinishReason.ABORT
rest = generate(continuations(cut), sampling=SamplingParams(n=1, max_new_tokens=left, ...))
whole = joined(cut, rest)
"""

from dataclasses import replace

import numpy as np

from baton.clients.rollout import Prompt
from baton.errors import InvalidRequestError
from baton.samples import Ragged, Samples


def continuations(samples: Samples) -> list[Prompt]:
    """A prompt for each sample, named by its sample id: its prompt and what it has of a response, token by token."""
    prompts = []
    for sample_id, prompt, response in zip(
        samples.sample_ids, samples.prompt_ids.rows(), samples.response_ids.rows(), strict=True
    ):
        tokens = np.concatenate([prompt, response]).tolist()
        prompts.append(Prompt(sample_id, token_ids=tokens, continues=tokens))
    return prompts


def joined(begun: Samples, rest: Samples) -> Samples:
    """The samples of `begun`, each with what `rest` has of the group that its sample id names; `rest` in any order.

    Log-probabilities and version spans go on likewise. Raises InvalidRequestError if a sample's rest is missing, is there
    twice, or does not begin where it ended.
    """
    if sorted(rest.group_ids) != sorted(begun.sample_ids):
        odd = sorted(set(begun.sample_ids) ^ set(rest.group_ids)) or sorted(rest.group_ids)
        raise InvalidRequestError(f"each sample needs one response that goes on with it (n = 1); see {odd[0]}")
    place = {group_id: row for row, group_id in enumerate(rest.group_ids)}
    rest = rest.take([place[sample_id] for sample_id in begun.sample_ids])
    expected = _end_to_end(begun.prompt_ids, begun.response_ids).rows()
    for sample_id, tokens, prompt in zip(begun.sample_ids, expected, rest.prompt_ids.rows(), strict=True):
        if not np.array_equal(tokens, prompt):
            raise InvalidRequestError(f"the rest of {sample_id} was asked for with other tokens than it had; ask again")
    begun, rest = Samples.alike([begun, rest])
    columns = ["response_ids", "rollout_logprobs", "model_logprobs", "span_versions", "span_tokens"]
    if begun.uncut_logprobs is not None:
        columns.append("uncut_logprobs")
    return replace(
        rest,
        sample_ids=begun.sample_ids, group_ids=begun.group_ids, episode_ids=begun.episode_ids,
        prompt_ids=begun.prompt_ids, policy_version_min=np.minimum(begun.policy_version_min, rest.policy_version_min),
        policy_version_max=np.maximum(begun.policy_version_max, rest.policy_version_max),
        **{name: _end_to_end(getattr(begun, name), getattr(rest, name)) for name in columns},
    )  # fmt: skip


def _end_to_end(first: Ragged, second: Ragged) -> Ragged:
    rows = [np.concatenate(pair) for pair in zip(first.rows(), second.rows(), strict=True)]
    return Ragged.of(rows, first.values.dtype.type)
