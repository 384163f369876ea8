"""vLLM's handling of log-probabilities, without the text of each token where nobody reads it: making that takes longer than
all else that the service does with a token."""

from typing import Any

PLAIN = {"baton_plain_logprobs": True}
"""`SamplingParams.extra_args` of requests whose log-probabilities need no texts."""

_WRAPPED = "_baton_plain"


def install() -> None:
    """Has this process heed PLAIN. Once is enough; a second call changes nothing."""
    from vllm.v1.engine.logprobs import LogprobsProcessor

    made = LogprobsProcessor.from_new_request.__func__
    if hasattr(made, _WRAPPED):
        return

    def from_new_request(cls: type, tokenizer: Any, request: Any) -> Any:
        further = request.sampling_params.extra_args or {}
        return made(cls, None if further.keys() >= PLAIN.keys() else tokenizer, request)

    setattr(from_new_request, _WRAPPED, True)
    LogprobsProcessor.from_new_request = classmethod(from_new_request)
