"""One vLLM engine: generation, and new weights for it."""

from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from baton.config.policy import PolicyConfig
from services.rollout.beam_search import BeamSearch
from services.rollout.engine_args import engine_args


class VllmEngine:
    """AsyncLLM behind the few verbs that the service needs."""

    def __init__(self, config: PolicyConfig, model: Path, seed: int) -> None:
        """Loads the model; takes tens of seconds."""
        self._llm = AsyncLLM.from_engine_args(engine_args(config, model, seed))
        self.tokenizer = self._llm.get_tokenizer()
        self.max_model_len: int = self._llm.model_config.max_model_len
        self.vocabulary: int = self._llm.model_config.get_vocab_size()
        self.workers = config.tensor_model_parallel_size * config.pipeline_model_parallel_size
        self._group_id = ""

    async def generate(self, request_id: str, token_ids: list[int], params: SamplingParams) -> RequestOutput:
        """All responses to one prompt. Cancelling it aborts the request in the engine."""
        outputs = [output async for output in self._llm.generate({"prompt_token_ids": token_ids}, params, request_id)]
        return outputs[-1]

    async def beam_search(self, request_id: str, token_ids: list[int], params: SamplingParams) -> RequestOutput:
        """The `params.n` likeliest responses to one prompt, likeliest first."""
        return await BeamSearch(self._llm).search(request_id, token_ids, params)

    async def update_weights(self, group: bytes, group_id: str, first_rank: int, timeout_s: float) -> list[dict[str, Any]]:
        """Aborts what is in flight, receives a whole set of weights, and returns each worker's report.

        Joins the group first if it is a new one. The engine stays paused: call `resume`.
        """
        await self._llm.pause_generation(mode="abort", clear_cache=True)
        if group_id != self._group_id:
            info = {"group": group, "first_rank": first_rank, "timeout_s": timeout_s}
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info))
            self._group_id = group_id
        await self._llm.start_weight_update()
        try:
            await self._llm.update_weights(WeightTransferUpdateRequest(update_info={}))
            await self._llm.finish_weight_update()
        except Exception:
            self._group_id = ""
            raise
        return await self._llm.collective_rpc("baton_weight_report")

    async def resume(self) -> None:
        """Takes requests again; the caches of older weights are gone."""
        await self._llm.reset_prefix_cache()
        await self._llm.resume_generation()

    def shutdown(self) -> None:
        """Ends the engine's processes."""
        self._llm.shutdown()
