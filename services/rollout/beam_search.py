"""The likeliest responses by vLLM's own beam search."""

from vllm import SamplingParams
from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import BeamSearchParams
from vllm.v1.engine.async_llm import AsyncLLM

from services.rollout.logprobs import LikeliestAlone


class BeamSearch(BeamSearchOnlineMixin):
    """Scores a response by its log-probability under the raw model. It ends at the tokenizer's end token, not at others that
    the model may have."""

    def __init__(self, llm: AsyncLLM) -> None:
        """Searches with this engine; each step is a batch of requests of one token."""
        self.engine_client = LikeliestAlone(llm)
        self.renderer = llm.renderer

    async def search(
        self, request_id: str, token_ids: list[int], params: SamplingParams, adapter: LoRARequest | None = None
    ) -> RequestOutput:  # fmt: skip
        """The `params.n` best of a beam of that width, best first; of the other parameters only the limits matter."""
        beam = BeamSearchParams(
            beam_width=params.n,
            max_tokens=params.max_tokens,
            ignore_eos=params.ignore_eos,
            length_penalty=0.0,  # else vLLM divides by the tokens of prompt and response together
            include_stop_str_in_output=True,  # a sample's tokens include the end token
        )
        search = self.beam_search(tokens_input(token_ids), request_id, beam, lora_request=adapter)
        return [output async for output in search][-1]
