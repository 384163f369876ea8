"""How a batch's rows go on: prompts are fed as they are, responses are drawn and end where they should."""

import pytest
import torch

from baton.samples import FinishReason
from services.static_rollout.draw import Sampling
from services.static_rollout.rows import Response, Row, Writer

GREEDY = Sampling(temperature=0.0)
END = frozenset({9})


def logits(*tokens: int) -> torch.Tensor:
    """Logits [B, 10] under which each row's likeliest token is the given one."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), 10).float() * 5


def written(row: Row, *tokens: int) -> Response:
    """The response of a row to whose prompt the model answers with `tokens`, and then with 7 for ever."""
    writer = Writer([row], END, lambda ids: "".join("abcdefghij"[i] for i in ids))
    for index, token in enumerate([*tokens, 7, 7, 7, 7]):
        writer.advance(len(row.prompt) + index, logits(token))
    assert writer.done
    return writer.responses[0]


def test_a_prompt_that_goes_on_is_fed_whatever_the_model_says() -> None:
    writer = Writer([Row("a", [1, 2, 3], 2, GREEDY), Row("b", [4], 2, GREEDY)], END, str)
    assert writer.advance(1, logits(8, 5)) == [2, 5]
    assert writer.advance(2, logits(8, 6)) == [3, 6]
    assert writer.advance(3, logits(8, 7)) == [8, 0]
    assert not writer.done
    assert writer.advance(4, logits(7, 7)) == [7, 0]
    assert writer.done
    assert [response.token_ids for response in writer.responses] == [[8, 7], [5, 6]]


def test_a_token_that_stops_does_so_whatever_is_ignored() -> None:
    response = written(Row("a", [1], 4, GREEDY, ignore_eos=True, stop_ids=[9]), 5, 9)
    assert (response.token_ids, response.finish) == ([5, 9], FinishReason.STOP)


def test_an_end_token_ends_the_response_and_is_its_last() -> None:
    response = written(Row("a", [1], 4, GREEDY), 5, 9)
    assert (response.token_ids, response.finish) == ([5, 9], FinishReason.STOP)
    assert len(response.logprobs) == len(response.model_logprobs) == len(response.uncut_logprobs) == 2


def test_an_end_token_at_the_limit_is_a_stop() -> None:
    assert written(Row("a", [1], 2, GREEDY), 5, 9).finish == FinishReason.STOP


def test_with_ignore_eos_only_the_limit_ends_it() -> None:
    response = written(Row("a", [1], 3, GREEDY, ignore_eos=True), 9, 9)
    assert (response.token_ids, response.finish) == ([9, 9, 7], FinishReason.LENGTH)


@pytest.mark.parametrize("stop", ["cd", "d"])
def test_a_stop_text_ends_it_also_if_it_spans_tokens(stop: str) -> None:
    response = written(Row("a", [1], 4, GREEDY, stop=["zz", stop]), 2, 3, 4)
    assert (response.token_ids, response.finish) == ([2, 3], FinishReason.STOP)


def test_a_stop_text_in_the_prompt_ends_nothing() -> None:
    assert written(Row("a", [2, 3], 2, GREEDY, stop=["cd"]), 4, 4).token_ids == [4, 4]
