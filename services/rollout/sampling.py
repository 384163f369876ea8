"""The run file's sampling options, overridden per request, as what the engine is asked for."""

from dataclasses import dataclass
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.config.policy import PolicyConfig
from baton.errors import InvalidRequestError
from services.rollout.generation import room_for_response


@dataclass(frozen=True, slots=True)
class GroupSampling:
    """How one prompt is answered."""

    params: SamplingParams
    is_beam: bool

    @property
    def n(self) -> int:
        """Responses."""
        return self.params.n

    @property
    def temperature(self) -> float:
        """0: nothing is drawn."""
        return 0.0 if self.is_beam else self.params.temperature


def group_sampling(
    config: PolicyConfig, overrides: pb.SamplingParams, group_id: str, prompt_tokens: int, context: int
) -> GroupSampling:
    """How to answer one prompt of `prompt_tokens`, in a model of `context` tokens.

    Raises InvalidRequestError, naming the group, for options that contradict each other or are out of range, and if the
    prompt leaves no room for a response.
    """
    given = {field.name: value for field, value in overrides.ListFields()}
    room = room_for_response(group_id, prompt_tokens, context)
    limit = given.get("max_new_tokens", config.response_limit)
    options: dict[str, Any] = {name: given.get(name, getattr(config, name)) for name in _SAME_NAME}
    stop, is_beam = list(given.get("stop", config.stop_tokens)), given.get("use_beam_search", config.use_beam_search)
    if is_beam and stop:
        raise InvalidRequestError(f"sampling options of group {group_id}: a beam search ends at no text; leave out stop")
    try:
        params = SamplingParams(
            **options,
            seed=given.get("seed"),
            stop=stop or None,
            max_tokens=room if limit is None else min(limit, room),
            logprobs=1,  # the sampled token's own, and in place of the likeliest's the raw model's: see vllm_sampler
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
    except (ValueError, VLLMValidationError) as error:
        raise InvalidRequestError(f"sampling options of group {group_id}: {error}") from error
    return GroupSampling(params, is_beam)


_SAME_NAME = (
    "n", "temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos",
    "prompt_logprobs",
)  # fmt: skip
"""Options that vLLM calls as the run file does."""
