"""Stop texts that are special tokens, and those that can never come."""

from pathlib import Path

import pytest

from baton.errors import ConfigError, InvalidRequestError
from models import make_tokenizer

pytestmark = pytest.mark.slow  # importing transformers takes seconds


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory):
    from transformers import AutoTokenizer

    from services.rollout.stop_texts import StopTexts

    directory: Path = make_tokenizer(tmp_path_factory.mktemp("tokenizer"), ["yes", "no"])
    return StopTexts(AutoTokenizer.from_pretrained(directory))


def test_special_tokens_stop_by_their_ids_and_other_texts_by_themselves(stops) -> None:
    assert stops.token_ids(["yes", "</s>", "yes no", "<s>", " "]) == [2, 1]


@pytest.mark.parametrize("text", ["perhaps", "yes perhaps", "yes </s>"])
def test_a_text_that_no_response_can_have_is_refused(stops, text) -> None:
    with pytest.raises(InvalidRequestError, match=f"stop text '{text}': the tokenizer has no tokens for it"):
        stops.token_ids(["yes", text])
    with pytest.raises(ConfigError, match=r"models\.policy\.stop_token_list: stop text"):
        stops.option_ids([text])
