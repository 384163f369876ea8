"""A request's prompts as token ids."""

from typing import Any

import numpy as np

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.errors import InvalidRequestError
from services.rollout.continuations import check_continues


def prompt_tokens(prompt: pb.Prompt, tokenizer: Any, vocabulary: int, model: str) -> list[int]:
    """The prompt's tokens. Raises InvalidRequestError if it has none, or such that the `model` of that `vocabulary` lacks,
    and if it does not continue what it says it does."""
    tokens = _rendered(prompt, tokenizer, vocabulary, model)
    if prompt.continues:
        check_continues(prompt.group_id, tokens, _ids(prompt, "continues"))
    return tokens


def _rendered(prompt: pb.Prompt, tokenizer: Any, vocabulary: int, model: str) -> list[int]:
    match prompt.WhichOneof("input"):
        case "token_ids":
            token_ids = _ids(prompt, "token_ids")
            if (odd := (token_ids < 0) | (token_ids >= vocabulary)).any():
                raise InvalidRequestError(
                    f"prompt {prompt.group_id} has token id {token_ids[odd][0]}, but the model's go from 0 to "
                    f"{vocabulary - 1}; encode it with the tokenizer of {model}"
                )
            return token_ids.tolist()
        case "text":
            return tokenizer.encode(prompt.text)
        case "chat":
            turns = [{"role": turn.role, "content": turn.content} for turn in prompt.chat.messages]
            rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            return tokenizer.encode(rendered, add_special_tokens=False)
    raise InvalidRequestError(f"prompt {prompt.group_id} has no input; set token_ids, text or chat")


def _ids(prompt: pb.Prompt, name: str) -> np.ndarray:
    raw = getattr(prompt, name)
    if len(raw) % 4:
        raise InvalidRequestError(
            f"{name} of prompt {prompt.group_id} has {len(raw)} bytes; send four to each token id, little-endian int32"
        )
    return np.frombuffer(raw, "<i4")
