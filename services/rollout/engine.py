"""One vLLM engine: generation, and new weights for it."""

from pathlib import Path
from typing import Any

import numpy as np
from vllm import AsyncEngineArgs, SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from baton.config.policy import PolicyConfig
from baton.errors import ServiceUnavailableError
from baton.samples import FinishReason, Ragged, Samples
from services.rollout.vllm_plugin import BACKEND

_FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.ABORT}


class VllmEngine:
    """AsyncLLM behind the few verbs that the service needs."""

    def __init__(self, config: PolicyConfig, model: Path, seed: int) -> None:
        """Loads the model; takes tens of seconds."""
        arguments: dict[str, Any] = {
            "model": str(model),
            "tokenizer": config.tokenizer,
            "dtype": config.dtype,
            "seed": seed,
            "max_model_len": config.seq_length,
            "tensor_parallel_size": config.tensor_model_parallel_size,
            "pipeline_parallel_size": config.pipeline_model_parallel_size,
            "enforce_eager": config.enforce_eager,
            "load_format": config.vllm_load_format,
            "quantization": config.quantization,
            "revision": config.revision,
            "tokenizer_revision": config.tokenizer_revision,
            "tokenizer_mode": config.tokenizer_mode,
            "max_num_batched_tokens": config.max_num_batched_tokens,
            "max_num_seqs": config.max_num_seqs,
            "block_size": config.block_size,
            "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "weight_transfer_config": WeightTransferConfig(backend=BACKEND),
            "worker_extension_cls": "services.rollout.vllm_weights.WeightReports",
        }
        if not current_platform.is_cpu():
            arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
        given = {name: value for name, value in arguments.items() if value is not None}
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**given | config.engine_args))
        self.tokenizer = self._llm.get_tokenizer()
        self.max_model_len: int = self._llm.model_config.max_model_len
        self.workers = config.tensor_model_parallel_size * config.pipeline_model_parallel_size
        self._group_id = ""

    async def generate(self, request_id: str, token_ids: list[int], params: SamplingParams) -> RequestOutput:
        """All responses to one prompt. Cancelling it aborts the request in the engine.

        Raises ServiceUnavailableError if the engine's process has died.
        """
        try:
            outputs = [output async for output in self._llm.generate({"prompt_token_ids": token_ids}, params, request_id)]
        except EngineDeadError as error:
            raise ServiceUnavailableError(f"the engine of this replica died ({error}); see its log") from error
        return outputs[-1]

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


def to_samples(
    output: RequestOutput, group_id: str, episode_id: int, version: int, digest: str, temperature: float
) -> Samples:
    """One group's samples, without rewards."""
    count = len(output.outputs)
    finish = np.array([_FINISH[completion.finish_reason] for completion in output.outputs], np.uint8)
    return Samples(
        sample_ids=[f"{group_id}/{index}" for index in range(count)],
        group_ids=[group_id] * count,
        episode_ids=np.full(count, episode_id, np.int64),
        prompt_ids=Ragged.of([output.prompt_token_ids] * count, np.int32),
        response_ids=Ragged.of([completion.token_ids for completion in output.outputs], np.int32),
        rollout_logprobs=Ragged.of([_logprobs(completion) for completion in output.outputs], np.float32),
        finish_reasons=finish,
        policy_version_min=np.full(count, version, np.int64),
        policy_version_max=np.full(count, version, np.int64),
        weights_digests=[digest] * count,
        temperatures=np.full(count, temperature, np.float32),
    )


def _logprobs(completion: CompletionOutput) -> list[float]:
    """The sampled token's log-probability at each position; vLLM lists it first."""
    flat = completion.logprobs
    return [flat.logprobs[start] for start in flat.start_indices]
