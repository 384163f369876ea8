"""The run file's sampling options, overridden per request, as vLLM's SamplingParams."""

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.config.policy import PolicyConfig
from baton.errors import InvalidRequestError
from services.rollout.generation import room_for_response


def sampling_params(
    config: PolicyConfig, overrides: pb.SamplingParams, group_id: str, prompt_tokens: int, context: int
) -> SamplingParams:
    """Returns what to sample one prompt of `prompt_tokens` with, in a model of `context` tokens.

    Raises InvalidRequestError, naming the group and both lengths, if the prompt leaves no room for a response.
    """
    given = {field.name: value for field, value in overrides.ListFields()}
    room = room_for_response(group_id, prompt_tokens, context)
    limit = given.get("max_new_tokens", config.response_limit)
    try:
        return SamplingParams(
            n=given.get("n", config.n),
            temperature=given.get("temperature", config.effective_temperature),
            top_p=given.get("top_p", config.top_p),
            top_k=given.get("top_k", config.top_k),
            presence_penalty=config.presence_penalty,
            frequency_penalty=config.frequency_penalty,
            repetition_penalty=config.repetition_penalty,
            ignore_eos=given.get("ignore_eos", config.ignore_eos),
            seed=given.get("seed"),
            stop=list(config.stop_tokens) or None,
            max_tokens=room if limit is None else min(limit, room),
            logprobs=0,  # the sampled token's own
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
    except (ValueError, VLLMValidationError) as error:
        raise InvalidRequestError(f"sampling options of group {group_id}: {error}") from error
