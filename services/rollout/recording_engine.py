"""The engine as vLLM's own servers call it: what they have it sample is recorded, token by token, under its group."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput, RequestOutput

from baton.config.policy import PolicyConfig
from services.rollout.engine import FINISH, VllmEngine
from services.rollout.generation import Completion
from services.rollout.logprobs import OTHERS, Sampled, likeliest_alone
from services.rollout.prompts import check_vocabulary
from services.rollout.recordings import Answered, Recordings
from services.rollout.service import Replica


@dataclass(frozen=True, slots=True)
class Asked:
    """What an HTTP request asks for beside its body."""

    group_id: str
    """Empty: a group of its own."""
    exact_version: int | None
    min_version: int | None


ASKED: ContextVar[Asked] = ContextVar("ASKED")
"""Of the present HTTP request."""


@dataclass(slots=True)
class _Response:
    """One response as it arrives, whole or in pieces."""

    token_ids: list[int] = field(default_factory=list)
    pieces: list[Sampled] = field(default_factory=list)
    text: str = ""
    finish: str | None = None

    def take(self, piece: CompletionOutput, flat: FlatLogprobs, loads: int, adapter: int | None) -> None:
        self.token_ids += piece.token_ids
        self.pieces.append(Sampled.of(flat, loads, adapter))
        self.text += piece.text
        self.finish = piece.finish_reason

    def completion(self, adapter: int | None) -> Completion:
        parts = [(piece.drawn_from, piece.raw, piece.loads, piece.uncut) for piece in self.pieces]
        drawn_from, raw, loads, uncut = map(np.concatenate, zip(*parts, strict=True))
        return Completion(self.token_ids, drawn_from, raw, FINISH[self.finish], self.text, loads, uncut, adapter)


class RecordingEngine:
    """Everything but `generate` is AsyncLLM's own."""

    def __init__(self, engine: VllmEngine, replica: Replica, recordings: Recordings, config: PolicyConfig) -> None:
        """Requests count as the replica's; their responses go to `recordings`, and end as `config` says where an agent says
        nothing else."""
        self._config = config
        self._engine = engine
        self._replica = replica
        self._recordings = recordings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine.llm, name)

    async def generate(self, prompt: Any, params: SamplingParams, request_id: str, **options: Any) -> AsyncIterator[Any]:
        """As AsyncLLM's. What it yields waits for the reader, the engine does not; leaving it aborts the request.

        A request that was left is not recorded. Raises as `Replica.begin` and `Recordings.check_room`, and ValueError for
        what cannot be recorded.
        """
        _check(params, self._config.use_beam_search)
        self._engine.stops.token_ids(params.stop)  # raises before anything begins
        self._recordings.check_room()
        outputs: asyncio.Queue[RequestOutput | None] = asyncio.Queue()
        asked = ASKED.get()
        group_id = asked.group_id or request_id
        check_vocabulary(group_id, prompt["prompt_token_ids"], self._engine.vocabulary, self._replica.model)
        params = ended_as(self._config, params)
        request_id = f"{request_id}-{uuid.uuid4().hex[:8]}"  # agents name requests, maybe two that are under way alike
        work = self._sample(outputs, group_id, prompt, params, request_id, options, asked)
        task = self._replica.begin(group_id, params.n, work, asked.exact_version, asked.min_version)
        try:
            while (output := await outputs.get()) is not None:
                yield output
            await task
        finally:
            task.cancel()

    async def _sample(
        self, outputs: asyncio.Queue[RequestOutput | None], group_id: str, prompt: Any, params: SamplingParams,
        request_id: str, options: dict[str, Any], asked: Asked,
    ) -> None:  # fmt: skip
        wanted = params.clone()
        wanted.stop_token_ids = [*params.stop_token_ids, *self._engine.stops.token_ids(params.stop)]
        wanted.logprobs, wanted.flat_logprobs = (params.logprobs or 0) + OTHERS, True
        responses: dict[int, _Response] = {}
        try:
            self._replica.check_version(asked.exact_version)
            with self._engine.under_way(group_id, request_id) as adapter:
                load = adapter and adapter.load
                options["lora_request"] = adapter and adapter.request
                async for output in self._engine.llm.generate(prompt, wanted, request_id, **options):
                    for piece in output.outputs:
                        flat = piece.logprobs[: len(piece.token_ids)]  # vLLM 0.26 ends an aborted stream with all it had
                        responses.setdefault(piece.index, _Response()).take(piece, flat, self._engine.loads, load)
                        piece.logprobs = None if params.logprobs is None else likeliest_alone(flat)
                    if output.prompt_logprobs is not None:  # vLLM's servers look for None where a flat one has no rows
                        output.prompt_logprobs = [row or None for row in output.prompt_logprobs]
                    outputs.put_nowait(output)
            completions = [response.completion(load) for _, response in sorted(responses.items())]
            samples = self._replica.samples(group_id, 0, output.prompt_token_ids, completions, params.temperature)
            answered = Answered(samples, [completion.text for completion in completions])
            self._recordings.add(group_id, answered, alone=not asked.group_id)
        finally:
            outputs.put_nowait(None)


def ended_as(config: PolicyConfig, params: SamplingParams) -> SamplingParams:
    """With the run file's stop texts if the agent has none of its own, and its `ignore_eos`: vLLM's servers have no defaults
    for these."""
    stop = params.stop if params.stop or params.stop_token_ids else [*config.stop_tokens]
    return msgspec.structs.replace(params, stop=stop, ignore_eos=params.ignore_eos or config.ignore_eos)


def _check(params: SamplingParams, searches: bool) -> None:
    if searches:
        raise ValueError("models.policy.use_beam_search is set, but a beam search cannot be recorded; leave it out")
    if params.logprobs is not None and params.logprobs < 0:
        raise ValueError("logprobs of the whole vocabulary are not given; ask for a number of them")
    if params.structured_outputs is not None:  # vLLM takes away what the grammar forbids before it samples
        raise ValueError(
            "structured outputs (response_format, tool_choice, guided decoding) cannot be recorded: the raw model's "
            "log-probabilities are lost; leave them out, and check the answer instead"
        )
    if getattr(params, "repetition_detection", None):
        raise ValueError("repetition_detection cannot be recorded: no finish reason of samples says so; leave it out")
    if getattr(params, "logprob_token_ids", None):
        raise ValueError("logprob_token_ids cannot be recorded; leave them out")
