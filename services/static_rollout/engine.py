"""Static batches behind the verbs of a rollout engine, on rank 0: requests wait, and go out as batches."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.config.policy import PolicyConfig
from baton.errors import BatonError, InvalidRequestError, NotReadyError, ServiceFaultError
from baton.samples import FinishReason
from services.rollout.generation import Answer, Completion
from services.static_rollout.options import RowOptions, row_options
from services.static_rollout.ranking import batches, ranked, words
from services.static_rollout.rows import Response, Row
from services.static_rollout.worker import decode_responses, encode_rows
from services.trainer.ranks import Ranks

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    """One prompt's rows, and what has come of them."""

    rows: list[Row]
    length: int
    done: asyncio.Future[list[Response]]
    responses: dict[int, Response] = field(default_factory=dict)
    load: int = 0
    """Weights that its batches were made with."""


class StaticEngine:
    """Takes all requests that wait as one window whenever the ranks are free; batches are cut out of the window."""

    interruptible = False
    adapters = None

    def __init__(
        self, config: PolicyConfig, ranks: Ranks, tokenizer: Any, vocabulary: int, seed: int,
        stop_ids: Sequence[int] = (), model_facts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Call `run` beside it: it makes the batches. `vocabulary`: rows of the model's embedding; `stop_ids`: of the run
        file's stop texts that are special tokens; `model_facts`: what weights must fit."""
        self.tokenizer = tokenizer
        self.max_model_len = config.seq_length
        self.vocabulary = vocabulary
        self.workers = config.tensor_model_parallel_size * config.pipeline_model_parallel_size
        self.devices: list[str] = []
        self.staging_bytes = 0  # its batches are not joined anyway
        self.model_facts = model_facts
        self.cache_blocks = self.cache_block_tokens = 0
        self._config = config
        self._stop_ids = stop_ids
        self._evaluation = config.for_evaluation()
        self._ranks = ranks
        self._seed = seed
        self.loads = 0
        self._digest = ""  # of the weights that are loaded, unless they are those of the start
        self._asked: Counter[str] = Counter()  # how often for each group without a seed, under these weights
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._paused = False
        self._broken = False  # whether the last update did not get to its end

    def params(
        self, overrides: pb.SamplingParams, group_id: str, prompt_tokens: int, *, evaluation: bool
    ) -> RowOptions:  # fmt: skip
        """The run file's sampling options, overridden."""
        return row_options(
            self._evaluation if evaluation else self._config, overrides, group_id, prompt_tokens, self.max_model_len,
            self._stop_ids,
        )  # fmt: skip

    def length(self, token_ids: list[int]) -> int:
        """What ranking goes by."""
        if self._config.batch_generation.length_key == "words":
            return words(self.tokenizer.decode(token_ids, skip_special_tokens=True))
        return len(token_ids)

    async def generate(self, group_id: str, token_ids: list[int], params: RowOptions) -> Answer:
        """All responses to one prompt. If it is cancelled while it waits it is never begun."""
        if self._paused:
            raise NotReadyError("this replica is receiving weights; ask again for the version that it serves afterwards")
        seed, name = self._draws(group_id, params)
        rows = [
            Row(
                f"{name}/{index}", token_ids, params.limit, params.sampling, seed, params.ignore_eos, params.stop,
                params.stop_ids,
            )
            for index in range(params.n)
        ]  # fmt: skip
        waiting = _Waiting(rows, self.length(token_ids), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return Answer([self._completion(response, params, waiting.load) for response in await waiting.done])

    @property
    def dead(self) -> bool:
        """Never: torchrun ends all ranks, and so this process, with the first that dies."""
        return False

    async def prepare(self) -> None:
        """Ends the start; to be awaited once, before anything else."""
        self.devices = [part.decode() for part in await self._ranks.execute("Device", b"")]

    async def run(self) -> None:
        """Makes batches until it is cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            window, self._waiting = self._waiting, []
            try:
                await self._window(window)
            except Exception as error:  # the boundary between the batches and those who wait for them
                if not isinstance(error, BatonError):
                    log.exception("a batch failed")
                    error = ServiceFaultError(f"a static batch failed: {type(error).__name__}: {error}")
                for waiting in window:
                    if not waiting.done.done():
                        waiting.done.set_exception(error)

    async def halt(self, *, keep: bool) -> None:
        """Refuses what waits and what comes, until `resume`. Nothing is kept: see `interruptible`."""
        self._paused = True

    async def halted(self) -> None:
        """It does."""

    async def update_weights(
        self, group: bytes, group_id: str, first_rank: int, timeout_s: float, *, verify: bool
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Receives a whole set of weights after the batch under way. Returns each rank's report."""
        request = pb.UpdateWeightsRequest(first_rank=first_rank, timeout_s=timeout_s, verify=verify)
        request.group.ParseFromString(group)
        if self._broken:
            await self._ranks.execute("LeaveGroup", b"")  # what some ranks may still hold is joined anew on all
        self._broken = True
        self.loads += 1
        reports = [json.loads(part) for part in await self._ranks.execute("UpdateWeights", request.SerializeToString())]
        self._broken = False
        self._digest = reports[0]["digest"]
        self._asked.clear()
        return reports

    async def stage_weights(self, *_: object, **__: object) -> list[dict[str, Any]]:
        """Never: `staging_bytes` is 0."""
        raise InvalidRequestError("static batches end before weights come; there is nothing to be gained by staging them")

    load_staged = load_adapter = stage_weights

    async def resume(self) -> None:
        """Takes requests again. A batch's cache ends with it, so nothing is left of older weights."""
        self._paused = False

    def check_sleep(self) -> None:
        """Always raises."""
        raise InvalidRequestError("static batches do not sleep; end this replica instead, or set generator to vllm")

    async def _window(self, window: Sequence[_Waiting]) -> None:
        """Makes the batches of one window, and hands out each prompt's responses with its last."""
        order = ranked([one.length for one in window]) if self._config.batch_generation.ranking else range(len(window))
        rows = [(window[index], number) for index in order for number in range(len(window[index].rows))]
        for batch in batches(range(len(rows)), self._config.batch_rows):
            chosen = [rows[index] for index in batch if not rows[index][0].done.done()]
            if not chosen:
                continue
            if self._paused:
                raise NotReadyError("new weights came before this request was begun; ask again for their version")
            for waiting, _ in chosen:
                waiting.load = self.loads  # an update that comes from now on waits for this batch
            request = encode_rows([waiting.rows[number] for waiting, number in chosen])
            for (waiting, number), response in zip(
                chosen, decode_responses(await self._ranks.execute("Generate", request)), strict=True
            ):
                waiting.responses[number] = response
                if len(waiting.responses) == len(waiting.rows) and not waiting.done.done():
                    waiting.done.set_result([waiting.responses[i] for i in range(len(waiting.rows))])

    def _draws(self, group_id: str, params: RowOptions) -> tuple[int, str]:
        """Seed and name that the group's random numbers depend on; neither knows of other groups, or who came first."""
        if params.seed is not None:
            return params.seed, group_id  # the request repeats itself
        self._asked[group_id] += 1
        return self._seed, f"{self._digest}/{self._asked[group_id]}/{group_id}"  # asked for again it draws anew

    def _completion(self, response: Response, params: RowOptions, load: int) -> Completion:
        text = self.tokenizer.decode(response.token_ids, skip_special_tokens=True)
        ends = [end for word in params.stop if (end := text.find(word)) >= 0]
        return Completion(
            response.token_ids, response.logprobs, response.model_logprobs, FinishReason(response.finish),
            text[: min(ends)] if ends else text, np.full(len(response.token_ids), load),
            response.uncut_logprobs if params.sampling.tells_uncut else None,
        )  # fmt: skip
