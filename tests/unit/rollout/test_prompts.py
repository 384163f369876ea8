"""A request's prompts on the wire."""

import pytest

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.errors import InvalidRequestError
from services.rollout.prompts import prompt_tokens

WHOLE = (5).to_bytes(4, "little")


@pytest.mark.parametrize("name", ["token_ids", "continues"])
def test_bytes_that_are_no_whole_token_ids_are_refused_with_the_group(name: str) -> None:
    prompt = pb.Prompt(group_id="g", **({"token_ids": WHOLE} | {name: WHOLE + b"\0"}))
    with pytest.raises(InvalidRequestError, match=f"{name} of prompt g has 5 bytes; send four to each token id"):
        prompt_tokens(prompt, None, 10, "m")


def test_whole_token_ids_are_taken() -> None:
    assert prompt_tokens(pb.Prompt(group_id="g", token_ids=WHOLE, continues=WHOLE), None, 10, "m") == [5]
