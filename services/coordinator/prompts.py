"""Where prompts come from, and in which order: sequential and endless, an episode may straddle the end of the data.

A position counts prompts since the run began; the only thing to remember is the position, so a run resumes where it was.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from baton.config import RunConfig
from baton.config.task import JsonlPrompts, ReasoningGymPrompts
from baton.engine import Engine
from baton.errors import ConfigError
from baton.flow import PromptItem
from services.coordinator.given_answers import answer_keys, check_answers

Record = Mapping[str, Any]
"""{"prompt": text or chat messages, **metadata}"""


class PromptOrder:
    """Maps positions to indices into `size` prompts; with `shuffle`, every pass over them has an order of its own."""

    def __init__(self, size: int, *, shuffle: bool = False, seed: int = 0) -> None:
        self.size = size
        self._seed = seed
        self._shuffle = shuffle
        self._pass: tuple[int, np.ndarray] | None = None

    def index(self, position: int) -> int:
        """The prompt at `position`, 0-based."""
        number, offset = divmod(position, self.size)
        if not self._shuffle:
            return offset
        if self._pass is None or self._pass[0] != number:
            self._pass = (number, np.random.default_rng([self._seed, number]).permutation(self.size))
        return int(self._pass[1][offset])


class Prompts:
    """The run's prompts: records from a source, in order, as chats."""

    def __init__(
        self, records: Callable[[int], Record], order: PromptOrder, *, system_prompt: str | None, template: str | None,
        held_out: range = range(0),
    ) -> None:  # fmt: skip
        """`held_out`: indices of the records that are not trained on."""
        self._record = records
        self._held_out = held_out
        self._order = order
        self._system_prompt = system_prompt
        self._template = template

    def take(self, position: int, count: int, episode_id: int) -> Iterator[PromptItem]:
        """The `count` prompts from `position` on, named as groups of the episode; each is made when it is asked for."""
        return (self._item(self._order.index(at), f"e{episode_id}-p{at}") for at in range(position, position + count))

    def held_out(self) -> Iterator[PromptItem]:
        """The prompts that are not trained on, in their order, made as those of `take`."""
        return (self._item(index, f"eval-p{index}") for index in self._held_out)

    def _item(self, index: int, group_id: str) -> PromptItem:
        record = dict(self._record(index))
        prompt = record.pop("prompt")
        turns = _turns(prompt, index)
        text = turns[-1]["content"]
        if self._template is not None:
            turns[-1] = turns[-1] | {"content": self._template.replace("{prompt}", text)}
        if self._system_prompt is not None:
            turns.insert(0, {"role": "system", "content": self._system_prompt})
        return PromptItem(group_id, turns, text, _checked_metadata(record, index))


async def made_aside(prompts: Iterator[PromptItem]) -> list[PromptItem]:
    """All of them, made in a thread: a single one may take a tenth of a second. When the caller is cancelled, the thread
    ends at the next prompt; the process would wait for it."""
    left = threading.Event()
    try:
        return await asyncio.to_thread(lambda: list(takewhile(lambda _: not left.is_set(), prompts)))
    finally:
        left.set()


def build_prompts(config: RunConfig, engine: Engine) -> Prompts:
    """The prompts of a run. Reads files, imports data sets and calls the user's function, so it may take seconds.

    Raises ConfigError if the source is missing, empty, or not what the run file says.
    """
    source = config.prompts
    if (source.source == "app") != (engine.prompts is not None):
        raise ConfigError(
            "prompts.source: is 'app', but the app's engine has no prompts; add Engine(prompts=...), or name another source"
            if source.source == "app"
            else f"prompts.source: is {source.source!r}, but the app's engine has prompts too; remove one of the two"
        )
    seed = config.runtime.seed if source.seed is None else source.seed
    records, size = _records(config, engine, seed)
    if source.source != "reasoning_gym" and size == 0:
        raise ConfigError(f"prompts: the source {source.source!r} has no prompts; add at least one")
    if source.holdout >= size:
        raise ConfigError(
            f"prompts.holdout: got {source.holdout}; the source has {size} prompts, and one at least must be left to train "
            "on; lower it, or add prompts"
        )
    held_out = range(size - source.holdout, size)
    size -= source.holdout
    if config.runtime.drop_last:
        size = _without_tail(config, size)
    order = PromptOrder(size, shuffle=source.shuffle, seed=seed)
    return Prompts(
        records, order, system_prompt=source.system_prompt, template=source.template, held_out=held_out
    )


def _records(config: RunConfig, engine: Engine, seed: int) -> tuple[Callable[[int], Record], int]:
    source = config.prompts
    if isinstance(source, ReasoningGymPrompts):
        return _reasoning_gym(source, seed, with_answer=config.is_offline), source.size
    rows = _jsonl(source) if isinstance(source, JsonlPrompts) else _from_app(engine)
    check_answers(rows, answer_keys(config), config.algorithm.name)
    return rows.__getitem__, len(rows)


def _reasoning_gym(source: ReasoningGymPrompts, seed: int, *, with_answer: bool) -> Callable[[int], Record]:
    import reasoning_gym  # takes two seconds, so only runs that use it pay

    try:
        dataset = reasoning_gym.create_dataset(source.task, size=source.size, seed=seed, **source.params)
    except Exception as error:  # the library raises AssertionError, TypeError and ValueError alike
        raise ConfigError(
            f"prompts: reasoning_gym cannot make task {source.task!r} with params {source.params}: {error}; "
            "check prompts.task and prompts.params against its gallery"
        ) from error
    maker = {"task": source.task, "size": source.size, "seed": seed, "params": source.params}

    def record(index: int) -> Record:
        entry = dataset[index]
        answer = {"answer": str(entry["answer"])} if with_answer else {}
        return {"prompt": entry["question"], "reasoning_gym": maker | {"index": index}, **answer}

    return record


def _jsonl(source: JsonlPrompts) -> list[Record]:
    if missing := source.missing_file():
        raise ConfigError(missing)
    path, rows = Path(source.path), []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt = row.pop(source.prompt_key)
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{path}:{number}: must be a JSON object with the key {source.prompt_key!r} "
                f"({type(error).__name__}: {error}); fix the line, or set prompts.prompt_key"
            ) from error
        rows.append(row | {"prompt": prompt})
    return rows


def _from_app(engine: Engine) -> list[Record]:
    rows = list(engine.prompts() if callable(engine.prompts) else engine.prompts or ())
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping) or "prompt" not in row:
            raise ConfigError(f"engine prompt {index}: got {str(row)[:80]!r}; must be a dict with the key 'prompt'")
    return rows


def _without_tail(config: RunConfig, size: int) -> int:
    batch = config.generation_batch_size("policy") * config.models.policy.num_replica
    if size < batch:
        raise ConfigError(
            f"runtime.drop_last: is on, and {size} prompts do not fill one batch of {batch} (generation batch x replicas), "
            "so none would be left; turn it off, or lower the batch"
        )
    return size - size % batch


def _turns(prompt: Any, index: int) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    is_chat = isinstance(prompt, Sequence) and bool(prompt) and all(_is_turn(turn) for turn in prompt)
    if not is_chat:
        raise ConfigError(
            f"prompt {index}: got {str(prompt)[:80]!r}; must be a text or a list of {{'role': ..., 'content': ...}} turns"
        )
    return [dict(turn) for turn in prompt]


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, Mapping) and set(turn) == {"role", "content"} and all(isinstance(v, str) for v in turn.values())


def _checked_metadata(metadata: dict[str, Any], index: int) -> dict[str, Any]:
    for key, value in metadata.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"prompt {index}: metadata {key!r} cannot be written as JSON ({error}); use text, numbers, lists and dicts"
            ) from error
    return metadata
