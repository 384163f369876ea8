"""A request's prompts as token ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.errors import InvalidRequestError
from services.rollout.continuations import check_continues


def prompt_tokens(prompt: pb.Prompt, tokenizer: Any, vocabulary: int, model: str) -> list[int]:
    """The prompt's tokens. Raises InvalidRequestError if it has none, or such that the `model` of that `vocabulary` lacks,
    and if it does not continue what it says it does."""
    tokens = _encoded(prompt, tokenizer)
    check_vocabulary(prompt.group_id, tokens, vocabulary, model)
    if prompt.continues:
        check_continues(prompt.group_id, tokens, _ids(prompt, "continues"))
    return tokens


def check_vocabulary(group_id: str, tokens: Sequence[int], vocabulary: int, model: str) -> None:
    """Raises InvalidRequestError for a token that the model has no embedding of, which would end vLLM's engine: a tokenizer
    may have more tokens than the model."""
    for token in (min(tokens, default=0), max(tokens, default=0)):
        if not 0 <= token < vocabulary:
            raise InvalidRequestError(
                f"prompt {group_id} has token id {token}, but the model's go from 0 to {vocabulary - 1}; encode it with the "
                f"tokenizer of {model}: see models.policy.tokenizer"
            )


def _encoded(prompt: pb.Prompt, tokenizer: Any) -> list[int]:
    match prompt.WhichOneof("input"):
        case "token_ids":
            return _ids(prompt, "token_ids").tolist()
        case "text":
            return tokenizer.encode(prompt.text)
        case "chat":
            return tokenizer.encode(_rendered(prompt, tokenizer), add_special_tokens=False)
    raise InvalidRequestError(f"prompt {prompt.group_id} has no input; set token_ids, text or chat")


def _rendered(prompt: pb.Prompt, tokenizer: Any) -> str:
    if tokenizer.chat_template is None:
        raise InvalidRequestError(
            f"prompt {prompt.group_id} is a chat, and the tokenizer of {tokenizer.name_or_path} has no chat template; give "
            "token_ids or text, or set models.policy.tokenizer to one that has"
        )
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt.chat.messages]
    try:
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except (TemplateError, ValueError) as error:
        raise InvalidRequestError(
            f"the chat of prompt {prompt.group_id} is none that the tokenizer's template takes ({error}); see its turns"
        ) from error


def _ids(prompt: pb.Prompt, name: str) -> np.ndarray:
    raw = getattr(prompt, name)
    if len(raw) % 4:
        raise InvalidRequestError(
            f"{name} of prompt {prompt.group_id} has {len(raw)} bytes; send four to each token id, little-endian int32"
        )
    return np.frombuffer(raw, "<i4")
