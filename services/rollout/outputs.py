"""What an engine answered, as samples and messages."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from vllm.outputs import CompletionOutput, RequestOutput

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.samples import FinishReason, Ragged, Samples
from services.rollout.logprobs import prompt_table, sampled_logprobs
from services.rollout.sampling import GroupSampling

_FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.ABORT}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a group's samples came from."""

    group_id: str
    episode_id: int
    version: int
    digest: str


def to_samples(output: RequestOutput, origin: Origin, sampling: GroupSampling) -> Samples:
    """One group's samples, without rewards."""
    count = len(output.outputs)
    drawn_from, raw = zip(*(_logprobs(completion, sampling) for completion in output.outputs), strict=True)
    finish = np.array([_FINISH[completion.finish_reason] for completion in output.outputs], np.uint8)
    return Samples(
        sample_ids=[f"{origin.group_id}/{index}" for index in range(count)],
        group_ids=[origin.group_id] * count,
        episode_ids=np.full(count, origin.episode_id, np.int64),
        prompt_ids=Ragged.of([output.prompt_token_ids] * count, np.int32),
        response_ids=Ragged.of([completion.token_ids for completion in output.outputs], np.int32),
        rollout_logprobs=Ragged.of(drawn_from, np.float32),
        model_logprobs=Ragged.of(raw, np.float32),
        finish_reasons=finish,
        policy_version_min=np.full(count, origin.version, np.int64),
        policy_version_max=np.full(count, origin.version, np.int64),
        weights_digests=[origin.digest] * count,
        temperatures=np.full(count, sampling.temperature, np.float32),
    )


def prompt_logprobs(output: RequestOutput, group_id: str, likeliest: int) -> Sequence[pb.PromptLogprobs]:
    """The prompt's log-probabilities, if they were asked for."""
    if output.prompt_logprobs is None:
        return []
    ids, logprobs = prompt_table(output.prompt_logprobs, 1 + likeliest)
    return [
        pb.PromptLogprobs(group_id=group_id, columns=1 + likeliest, token_ids=ids.tobytes(), logprobs=logprobs.tobytes())
    ]


def _logprobs(completion: CompletionOutput, sampling: GroupSampling) -> tuple[np.ndarray, np.ndarray]:
    """(of the distribution sampled from, of the raw model): [tokens] each."""
    if sampling.is_beam:
        raw = np.asarray(
            [row[token].logprob for row, token in zip(completion.logprobs, completion.token_ids, strict=True)], np.float32
        )
        return np.zeros_like(raw), raw
    drawn_from, raw = sampled_logprobs(completion.logprobs)
    return (drawn_from if sampling.temperature else np.zeros_like(drawn_from)), raw
