"""Samples from texts that nobody generated here: prompts and their completions, as the model's tokenizer writes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from baton.api.trainer.v1 import scoring_pb2 as pb
from baton.errors import InvalidRequestError
from baton.samples import Ragged, Samples
from services.common.tokenizers import load_tokenizer


class Texts:
    """The tokenizers of a group's roles, each loaded when it is first asked for."""

    def __init__(self, sources: Mapping[str, str | Path], revisions: Mapping[str, str | None] | None = None) -> None:
        """`sources`: where each role's tokenizer is; `revisions`: which one is meant of those on a hub."""
        self._sources, self._revisions = sources, revisions or {}
        self._loaded: dict[str, Any] = {}
        self._lock = Lock()

    def tokenize(self, records: Sequence[pb.TextRecord], role: str = "") -> Samples:
        """One sample per record. Raises InvalidRequestError for a role that is not here, or a record without a prompt."""
        tokenizer = self._tokenizer(role or "ppo_policy")
        pairs = [_tokens(record, tokenizer) for record in records]
        return Samples(
            [record.sample_id for record in records],
            group_ids=[record.group_id for record in records],
            prompt_ids=Ragged.of([prompt for prompt, _ in pairs], np.int32),
            response_ids=Ragged.of([response for _, response in pairs], np.int32),
        )

    def _tokenizer(self, role: str) -> Any:
        if role not in self._sources:
            hosts = ", ".join(self._sources)
            raise InvalidRequestError(f"this trainer group hosts {hosts}, and not {role}; ask the group that does")
        with self._lock:
            if role not in self._loaded:
                self._loaded[role] = load_tokenizer(self._sources[role], revision=self._revisions.get(role))
            return self._loaded[role]


def _tokens(record: pb.TextRecord, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Prompt and response tokens; the response is ended by the end token, once."""
    if bool(record.chat) == bool(record.prompt_text):
        raise InvalidRequestError(f"record {record.sample_id}: give it exactly one of prompt_text and chat")
    if record.chat:
        if tokenizer.chat_template is None:
            raise InvalidRequestError(
                f"record {record.sample_id} is a chat, and the tokenizer of {tokenizer.name_or_path} has no chat template; "
                "write its prompt as text, or take a tokenizer that has one"
            )
        opening, answer = _rendered(record, tokenizer)
        prompt = tokenizer.encode(opening, add_special_tokens=False)
    else:
        prompt, answer = tokenizer.encode(record.prompt_text), record.completion
    if not prompt:
        raise InvalidRequestError(f"record {record.sample_id} has a prompt without a token; give it some text")
    response = tokenizer.encode(answer, add_special_tokens=False)
    end = tokenizer.eos_token_id
    if end is not None and response[-1:] != [end]:
        response.append(end)
    return prompt, response


def _rendered(record: pb.TextRecord, tokenizer: Any) -> tuple[str, str]:
    """The conversation up to the answer, and the answer as the chat template writes it, up to its end token.

    Where the template writes an answer not as a continuation of its opening, the answer is the completion itself.
    """
    turns = [{"role": turn.role, "content": turn.content} for turn in record.chat]
    answered = [*turns, {"role": "assistant", "content": record.completion}]
    opening = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    if not whole.startswith(opening):
        return opening, record.completion
    answer, end = whole[len(opening) :], tokenizer.eos_token
    if end and end in answer:
        answer = answer[: answer.rindex(end) + len(end)]  # without the line break that many templates write after it
    return opening, answer
