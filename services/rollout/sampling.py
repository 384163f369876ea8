"""The run file's sampling options, overridden per request, as what the engine is asked for."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.config.policy import PolicyConfig
from baton.config.sampling import WHOLE
from baton.errors import InvalidRequestError
from services.rollout.generation import room_for_response
from services.rollout.logprobs import OTHERS
from services.rollout.stop_texts import StopTexts
from services.rollout.vllm_logprobs import PLAIN


@dataclass(frozen=True, slots=True)
class GroupSampling:
    """How one prompt is answered."""

    params: SamplingParams
    is_beam: bool
    copies: int = 1
    """How often the engine's one response is given: greedy ones would all be equal."""

    @property
    def n(self) -> int:
        """Responses."""
        return self.params.n * self.copies

    @property
    def temperature(self) -> float:
        """0: nothing is drawn."""
        return 0.0 if self.is_beam else self.params.temperature


def group_sampling(
    config: PolicyConfig, overrides: pb.SamplingParams, group_id: str, prompt_tokens: int, context: int, stops: StopTexts
) -> GroupSampling:  # fmt: skip
    """How to answer one prompt of `prompt_tokens`, in a model of `context` tokens.

    Raises InvalidRequestError, naming the group, for options that contradict each other or are out of range, for stop texts
    that cannot come, and if the prompt leaves no room for a response.
    """
    given = {field.name: value for field, value in overrides.ListFields()}
    room = room_for_response(group_id, prompt_tokens, context)
    limit = given.get("max_new_tokens", config.response_limit)
    options: dict[str, Any] = {name: given.get(name, getattr(config, name)) for name in _SAME_NAME}
    stop, is_beam = list(given.get("stop", config.stop_tokens)), given.get("use_beam_search", config.use_beam_search)
    copies = 1
    if is_beam:
        _check_beam(group_id, options, stop)
        options["temperature"] = 1.0  # of no effect, but vLLM refuses several responses at 0
    elif options["temperature"] == 0 and options["n"] > 1:
        copies, options["n"] = options["n"], 1
    try:
        params = SamplingParams(
            **options,
            seed=_own_seed(given["seed"], group_id) if "seed" in given else None,
            stop=stop or None,
            stop_token_ids=stops.token_ids(stop) or None,
            max_tokens=room if limit is None else min(limit, room),
            logprobs=OTHERS if _is_cut(options, is_beam) else 1,  # the sampled token's own all the same: see vllm_sampler
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=PLAIN,
        )
    except (ValueError, VLLMValidationError) as error:
        raise InvalidRequestError(f"sampling options of group {group_id}: {error}") from error
    return GroupSampling(params, is_beam, copies)


def _own_seed(seed: int, group_id: str) -> int:
    """Of one group: with the request's own, all its groups would draw the same random numbers."""
    return int.from_bytes(blake2b(f"{seed}/{group_id}".encode(), digest_size=8).digest(), "little") >> 2


def _is_cut(options: dict[str, Any], is_beam: bool) -> bool:
    """Whether neither the raw model nor what is sampled from is the whole distribution at the temperature."""
    return not is_beam and options["temperature"] not in (0, 1) and any(options[name] not in WHOLE[name] for name in WHOLE)


def _check_beam(group_id: str, options: dict[str, Any], stop: list[str]) -> None:
    """Raises InvalidRequestError for what a beam search would leave out of account."""
    where = f"sampling options of group {group_id}"
    if stop:
        raise InvalidRequestError(f"{where}: a beam search ends at no text; leave out stop")
    for name, neutral in WHOLE.items():
        if options[name] not in neutral:
            raise InvalidRequestError(f"{where}: a beam search has no {name}, which is {options[name]:g}; set {neutral[0]}")
    if options["prompt_logprobs"] is not None:
        raise InvalidRequestError(f"{where}: a beam search returns no prompt_logprobs; ask for them without one")


_SAME_NAME = (
    "n", "temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos",
    "prompt_logprobs",
)  # fmt: skip
"""Options that vLLM calls as the run file does."""
