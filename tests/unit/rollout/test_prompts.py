"""A request's prompts on the wire."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.errors import InvalidRequestError
from models import make_tokenizer
from services.rollout.prompts import prompt_tokens

WHOLE = (5).to_bytes(4, "little")


@pytest.mark.parametrize("name", ["token_ids", "continues"])
def test_bytes_that_are_no_whole_token_ids_are_refused_with_the_group(name: str) -> None:
    prompt = pb.Prompt(group_id="g", **({"token_ids": WHOLE} | {name: WHOLE + b"\0"}))
    with pytest.raises(InvalidRequestError, match=f"{name} of prompt g has 5 bytes; send four to each token id"):
        prompt_tokens(prompt, None, 10, "m")


def test_whole_token_ids_are_taken() -> None:
    assert prompt_tokens(pb.Prompt(group_id="g", token_ids=WHOLE, continues=WHOLE), None, 10, "m") == [5]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(make_tokenizer(tmp_path_factory.mktemp("tokenizer"), ["a", "b", "c"]))


def chat(*roles: str) -> pb.Prompt:
    return pb.Prompt(group_id="g", chat=pb.Chat(messages=[pb.ChatMessage(role=role, content="a b") for role in roles]))


@pytest.mark.parametrize(
    "prompt", [pb.Prompt(group_id="g", token_ids=WHOLE), pb.Prompt(group_id="g", text="a c"), chat("user")]
)
def test_a_token_that_the_model_does_not_have_is_refused_however_the_prompt_was_given(prompt, tokenizer) -> None:
    assert max(prompt_tokens(prompt, tokenizer, 6, "m")) in (4, 5)
    with pytest.raises(InvalidRequestError, match=r"prompt g has token id \d, but the model's go from 0 to 2"):
        prompt_tokens(prompt, tokenizer, 3, "m")


def test_a_chat_for_a_tokenizer_without_a_template_is_refused(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    bare = AutoTokenizer.from_pretrained(tmp_path)
    bare.chat_template = None
    with pytest.raises(InvalidRequestError, match=r"prompt g is a chat, and the tokenizer of .* has no chat template; give"):
        prompt_tokens(chat("user"), bare, 9, "m")


def test_a_chat_that_the_template_refuses_is_refused_with_its_reason(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    strict = AutoTokenizer.from_pretrained(tmp_path)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequestError, match=r"chat of prompt g is none that .* takes \(roles must alternate\)"):
        prompt_tokens(chat("user", "user"), strict, 9, "m")
