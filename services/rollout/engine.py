"""One vLLM engine: generation, and new weights for it."""

import uuid
from pathlib import Path
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.outputs import CompletionOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.config.policy import PolicyConfig
from baton.errors import ServiceUnavailableError
from baton.samples import FinishReason
from services.rollout.beam_search import BeamSearch
from services.rollout.engine_args import engine_args
from services.rollout.generation import Answer, Completion
from services.rollout.logprobs import prompt_table, sampled_logprobs
from services.rollout.sampling import GroupSampling, group_sampling

_FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.ABORT}


class VllmEngine:
    """AsyncLLM behind the few verbs that the service needs."""

    def __init__(self, config: PolicyConfig, model: Path, seed: int) -> None:
        """Loads the model; takes tens of seconds."""
        self._llm = AsyncLLM.from_engine_args(engine_args(config, model, seed))
        self.tokenizer = self._llm.get_tokenizer()
        self.max_model_len: int = self._llm.model_config.max_model_len
        self.vocabulary: int = self._llm.model_config.get_vocab_size()
        self.workers = config.tensor_model_parallel_size * config.pipeline_model_parallel_size
        self._config = config
        self._evaluation = config.for_evaluation()
        self._group_id = ""

    def params(
        self, overrides: pb.SamplingParams, group_id: str, prompt_tokens: int, *, evaluation: bool
    ) -> GroupSampling:  # fmt: skip
        """The run file's sampling options, overridden."""
        config = self._evaluation if evaluation else self._config
        return group_sampling(config, overrides, group_id, prompt_tokens, self.max_model_len)

    async def generate(self, group_id: str, token_ids: list[int], params: GroupSampling) -> Answer:
        """All responses to one prompt. Cancelling it aborts the request in the engine.

        Raises ServiceUnavailableError if the engine's process has died.
        """
        try:
            return await self._answer(group_id, token_ids, params)
        except EngineDeadError as error:
            raise ServiceUnavailableError(f"the engine of this replica died ({error}); see its log") from error

    async def _answer(self, group_id: str, token_ids: list[int], params: GroupSampling) -> Answer:
        request_id = f"{group_id}-{uuid.uuid4().hex[:8]}"
        if params.is_beam:
            output = await BeamSearch(self._llm).search(request_id, token_ids, params.params)
            return Answer([_searched(completion) for completion in output.outputs])
        stream = self._llm.generate({"prompt_token_ids": token_ids}, params.params, request_id)
        output = [output async for output in stream][-1]
        asked = params.params.prompt_logprobs
        table = None if asked is None else prompt_table(output.prompt_logprobs, 1 + asked)
        return Answer([_sampled(completion) for completion in output.outputs], table)

    @property
    def dead(self) -> bool:
        """Whether the engine's own process has ended; there is no way back."""
        return self._llm.errored

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


def _sampled(completion: CompletionOutput) -> Completion:
    drawn_from, raw = sampled_logprobs(completion.logprobs)
    return Completion(completion.token_ids, drawn_from, raw, _FINISH[completion.finish_reason], completion.text)


def _searched(completion: CompletionOutput) -> Completion:
    raw = [row[token].logprob for row, token in zip(completion.logprobs, completion.token_ids, strict=True)]
    return Completion(completion.token_ids, raw, raw, _FINISH[completion.finish_reason], completion.text)
