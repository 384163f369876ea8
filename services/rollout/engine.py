"""One vLLM engine: generation, and new weights for it."""

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.tokenizers import get_tokenizer
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.config.lora import LoraConfig
from baton.config.policy import PolicyConfig
from baton.errors import (
    DeadlineError,
    InvalidRequestError,
    NotReadyError,
    ServiceFaultError,
    ServiceUnavailableError,
)
from baton.samples import FinishReason
from services.common.model_facts import model_facts
from services.common.tokenizers import no_tokenizer, require_own, require_revisions
from services.rollout.adapters import Adapter, Adapters
from services.rollout.beam_search import BeamSearch
from services.rollout.engine_args import engine_args
from services.rollout.generation import Answer, Completion
from services.rollout.logprobs import Sampled, prompt_table
from services.rollout.lora_args import check_adapted
from services.rollout.sampling import GroupSampling, group_sampling
from services.rollout.stop_texts import StopTexts
from services.rollout.vllm_pause import clear, pause

STAGED_POLL_S = 0.001
"""How soon the workers are first asked whether all weights are there."""

FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.ABORT}
"""vLLM's finish reasons."""


class VllmEngine:
    """AsyncLLM behind the few verbs that the service needs."""

    interruptible = True

    def __init__(self, config: PolicyConfig, model: Path, seed: int, lora: LoraConfig | None = None) -> None:
        """Loads the model; takes tens of seconds. With `lora` it has room for adapters of that shape. Raises ConfigError for
        options that vLLM cannot have."""
        _check_tokenizer(config, config.tokenizer or str(model))
        self.llm = AsyncLLM.from_engine_args(engine_args(config, model, seed, lora))
        self.tokenizer = self.llm.get_tokenizer()
        self.stops = StopTexts(self.tokenizer)
        self.max_model_len: int = self.llm.model_config.max_model_len
        self.vocabulary: int = self.llm.model_config.get_vocab_size()
        self.cache_blocks: int = self.llm.vllm_config.cache_config.num_gpu_blocks
        self.cache_block_tokens: int = self.llm.vllm_config.cache_config.block_size
        self.workers = config.tensor_model_parallel_size * config.pipeline_model_parallel_size
        self.devices: list[str] = []
        self.staging_bytes = int((config.weight_staging_gib or 0) * 2**30)
        self.model_facts = model_facts(self.llm.model_config.hf_text_config, self.tokenizer)
        self._config = config
        self._lora = lora
        self.adapters = Adapters(self.llm, self._abort) if lora else None
        self._evaluation = config.for_evaluation()
        self._group_id = ""
        self._under_way: dict[str, set[str]] = {}  # request ids by group
        self._searches: dict[str, asyncio.Task[RequestOutput]] = {}  # by request id
        self.loads = 0
        self._keeps = False  # whether responses under way stood still at the last halt
        self._halting: asyncio.Future[None]
        self._clearing: asyncio.Future[None] | None = None

    async def prepare(self) -> None:
        """Ends the start; to be awaited once, first. Raises ConfigError for adapters that vLLM cannot have."""
        self.devices = await self.llm.collective_rpc("baton_device")
        if self._config.pipeline_model_parallel_size > 1:
            await self.llm.collective_rpc("baton_prepare_stage")
        if self._lora:
            workers = await self.llm.collective_rpc("baton_adapted_modules")
            check_adapted(self._lora, self.llm.model_config.hf_text_config, {name for names in workers for name in names})

    def params(
        self, overrides: pb.SamplingParams, group_id: str, prompt_tokens: int, *, evaluation: bool
    ) -> GroupSampling:  # fmt: skip
        """The run file's sampling options, overridden."""
        config = self._evaluation if evaluation else self._config
        return group_sampling(config, overrides, group_id, prompt_tokens, self.max_model_len, self.stops)

    def length(self, token_ids: list[int]) -> int:
        """Tokens."""
        return len(token_ids)

    async def generate(self, group_id: str, token_ids: list[int], params: GroupSampling) -> Answer:
        """All responses to one prompt. Cancelling it aborts the request in the engine. Raises as `under_way`."""
        request_id = f"{group_id}-{uuid.uuid4().hex[:8]}"
        with self.under_way(group_id, request_id) as adapter:
            return await self._answer(request_id, token_ids, params, adapter)

    @contextmanager
    def under_way(self, group_id: str, request_id: str) -> Iterator[Adapter | None]:
        """Around a request to `llm`, which must be for the adapter that this gives: `abort` ends it with its group. Raises
        ServiceUnavailableError if the engine dies."""
        requests = self._under_way.setdefault(group_id, set())
        requests.add(request_id)
        try:
            with self.adapters.using(request_id) if self.adapters else nullcontext() as adapter:
                yield adapter
        except EngineDeadError as error:
            raise ServiceUnavailableError(f"the engine of this replica died ({error}); see its log") from error
        finally:
            requests.remove(request_id)
            if not requests:
                self._under_way.pop(group_id, None)

    async def _answer(
        self, request_id: str, token_ids: list[int], params: GroupSampling, adapter: Adapter | None
    ) -> Answer:  # fmt: skip
        if params.is_beam:
            return await self._search(request_id, token_ids, params, adapter)
        named = adapter and adapter.request
        stream = self.llm.generate({"prompt_token_ids": token_ids}, params.params, request_id, lora_request=named)
        output = [output async for output in stream][-1]
        asked = params.params.prompt_logprobs
        table = None if asked is None else prompt_table(output.prompt_logprobs, 1 + asked)
        return Answer([self._sampled(completion, adapter) for completion in output.outputs] * params.copies, table)

    async def _search(
        self, request_id: str, token_ids: list[int], params: GroupSampling, adapter: Adapter | None
    ) -> Answer:  # fmt: skip
        load, named = self.loads, adapter and adapter.request
        search = asyncio.ensure_future(BeamSearch(self.llm).search(request_id, token_ids, params.params, named))
        self._searches[request_id] = search
        try:
            await asyncio.wait([search])
        finally:
            del self._searches[request_id]
            search.cancel()
        if search.cancelled() or (adapter is None and self.loads != load):
            raise NotReadyError("the beam search was aborted, or new weights came in its midst; ask again")
        output = search.result()
        return Answer([_searched(completion, adapter.load if adapter else load) for completion in output.outputs])

    def _sampled(self, completion: CompletionOutput, adapter: Adapter | None) -> Completion:
        sampled = Sampled.of(completion.logprobs, self.loads, adapter and adapter.load)
        return Completion(
            completion.token_ids, sampled.drawn_from, sampled.raw, FINISH[completion.finish_reason], completion.text,
            sampled.loads, sampled.uncut, adapter and adapter.load,
        )  # fmt: skip

    @property
    def dead(self) -> bool:
        """Whether the engine's own process has ended; there is no way back."""
        return self.llm.errored

    async def halt(self, *, keep: bool) -> None:
        """Pauses until `resume`. Kept responses are computed again afterwards from their tokens, under the weights that are
        there then. vLLM does in order what it is told, and an idle engine at once: that is not waited for here."""
        self._keeps, self._halting = keep, asyncio.ensure_future(pause(self.llm, keep=keep))
        if self._under_way:
            await self.halted()

    async def halted(self) -> None:
        """Returns when it stands still."""
        await asyncio.shield(self._halting)

    async def update_weights(
        self, group: bytes, group_id: str, first_rank: int, timeout_s: float, *, verify: bool
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Receives a whole set of weights into the halted engine, and returns each worker's report.

        Joins the group first if it is a new one. Raises ServiceFaultError if a worker has not received all of it.
        """
        info = self._joining(group, group_id, first_rank, timeout_s, staged=False)
        self._takes_whole_weights()
        reports = _whole(await self._replaced("baton_receive_weights", info, self.loads, timeout_s, verify))
        self._group_id = group_id
        return reports

    def _joining(
        self, group: bytes, group_id: str, first_rank: int, timeout_s: float, *, staged: bool
    ) -> dict[str, Any] | None:  # fmt: skip
        """What workers need to join a group that is new to them. They are in none until the update has succeeded."""
        known, self._group_id = self._group_id, ""
        if group_id == known:
            return None
        return {"group": group, "first_rank": first_rank, "timeout_s": timeout_s, "staged": staged}

    async def stage_weights(
        self, group: bytes, group_id: str, first_rank: int, timeout_s: float, *, verify: bool
    ) -> list[dict[str, Any]]:  # fmt: skip
        """As `update_weights`, but generates meanwhile with the weights that it has: see `load_staged`."""
        info = self._joining(group, group_id, first_rank, timeout_s, staged=True)
        await self.llm.collective_rpc("baton_stage_weights", args=(info, timeout_s, verify))
        wait_s = STAGED_POLL_S
        while None in (reports := await self.llm.collective_rpc("baton_staged")):
            await asyncio.sleep(wait_s)
            wait_s = min(1.5 * wait_s, 0.1)
        self._group_id = group_id if all("error" not in report for report in reports) else ""
        return _whole(reports)

    async def load_staged(self, *, verify: bool) -> list[dict[str, Any]]:
        """Loads what was staged into the halted engine. Raises ServiceFaultError if a worker cannot."""
        self._takes_whole_weights()
        return _whole(await self._replaced("baton_load_staged", self.loads, verify))

    async def _replaced(self, method: str, *args: Any) -> list[dict[str, Any]]:
        """Every worker's answer. What was cached of the old weights goes then, while others are told that the new ones are
        there."""
        _, answers = await asyncio.gather(self.halted(), self.llm.collective_rpc(method, args=args))
        self._clearing = asyncio.ensure_future(clear(self.llm, keep=self._keeps))
        return answers

    def _takes_whole_weights(self) -> None:
        self.loads += 1
        if self.adapters:
            self.adapters.forget()

    async def load_adapter(self, names: Sequence[str], multiplier: float) -> list[dict[str, Any]]:
        """Takes what was staged, the adapter of these tensors, beside the weights and the adapters that there are, while the
        engine generates. Raises as `Adapters.load`."""
        self.loads += 1
        return await self.adapters.load(self.loads, names, multiplier)

    async def resume(self) -> None:
        """Takes requests again; nothing is cached of older weights."""
        clearing, self._clearing = self._clearing, None
        await asyncio.gather(self.llm.resume_generation(), *([clearing] if clearing else ()))

    async def abort(self, group_ids: Sequence[str]) -> None:
        """Their `generate` returns the tokens that they have; that of a beam search, which has none yet, NotReadyError."""
        await self._abort([request for group_id in group_ids for request in self._under_way.get(group_id, ())])

    async def _abort(self, requests: Sequence[str]) -> None:
        for request in requests:
            if search := self._searches.get(request):
                search.cancel()
        await self.llm.abort(list(requests))

    async def freeze(self) -> None:
        """All responses stand still, with what they have in the cache, until `resume`."""
        await self.llm.pause_generation(mode="keep", clear_cache=False)

    def check_sleep(self) -> None:
        """Raises InvalidRequestError on the CPU, and if the engine was not started for it."""
        if current_platform.is_cpu():
            raise InvalidRequestError("sleep frees an accelerator's memory, and this replica is on the CPU")
        if not self._config.engine_args.get("enable_sleep_mode"):
            raise InvalidRequestError("started without sleep mode; set models.policy.engine_args.enable_sleep_mode to true")

    async def sleep(self, level: int) -> None:
        """Level 1 moves the weights to the host's memory, 2 drops them."""
        await self.llm.sleep(level)

    async def wake(self) -> None:
        """Takes the memory again."""
        await self.llm.wake_up()

    def shutdown(self) -> None:
        """Ends the engine's processes."""
        self.llm.shutdown()


def _whole(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The workers' reports. Raises ServiceFaultError if one of them cannot take an update, DeadlineError if all that lack
    something only waited for it in vain."""
    if causes := [report["error"] for report in reports if "error" in report]:
        own = [cause for cause in causes if not cause.startswith(DeadlineError.__name__)]
        kind = ServiceFaultError if own else DeadlineError
        raise kind(f"{len(causes)} of {len(reports)} workers have not all of it: {(own or causes)[0]}")
    return reports


def _check_tokenizer(config: PolicyConfig, name: str) -> None:
    """Before processes start that would have to be ended. Raises ConfigError."""
    require_revisions(name, config.tokenizer_revision)
    try:
        tokenizer = get_tokenizer(
            name, tokenizer_mode=config.tokenizer_mode, trust_remote_code=config.trust_remote_code,
            revision=config.tokenizer_revision,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise no_tokenizer(name, f"could not be loaded ({type(error).__name__}: {error})") from error
    require_own(tokenizer, name)
    StopTexts(tokenizer).option_ids(config.stop_tokens)


def _searched(completion: CompletionOutput, load: int) -> Completion:
    raw = [row[token].logprob for row, token in zip(completion.logprobs, completion.token_ids, strict=True)]
    loads = np.full(len(raw), load)
    return Completion(completion.token_ids, raw, raw, FINISH[completion.finish_reason], completion.text, loads)
