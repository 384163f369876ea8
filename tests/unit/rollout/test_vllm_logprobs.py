"""The requests of Generate get their log-probabilities as numbers alone; who needs the text of each token gets it."""

from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # importing vLLM takes more than five seconds


@pytest.mark.parametrize("plain", [True, False])
def test_a_request_that_says_so_has_no_texts_made(plain: bool) -> None:
    from vllm import SamplingParams
    from vllm.v1.engine.logprobs import LogprobsProcessor

    from services.rollout.vllm_logprobs import PLAIN, install

    install()
    install()
    further = {**PLAIN, "of_others": 1} if plain else {"of_others": 1}
    request = SimpleNamespace(sampling_params=SamplingParams(logprobs=1, extra_args=further))
    processor = LogprobsProcessor.from_new_request(tokenizer="a tokenizer", request=request)
    assert processor.tokenizer == (None if plain else "a tokenizer")
    assert processor.num_logprobs == 1


@pytest.mark.parametrize("asked", [1, 2])
def test_what_comes_token_by_token_is_the_same_in_numbers_alone_as_in_vllms_own_form(asked: int) -> None:
    """The engine gives to every request as many columns as one of its batch asks for."""
    from vllm import SamplingParams
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsLists

    from services.rollout.logprobs import OTHERS, Sampled
    from services.rollout.vllm_logprobs import PLAIN, install

    install()
    kinds = SamplingParams(logprobs=asked, extra_args=PLAIN), SamplingParams(logprobs=OTHERS, flat_logprobs=True)
    found = []
    for params in kinds:
        processor = LogprobsProcessor.from_new_request(None, SimpleNamespace(sampling_params=params))
        for step in range(3):
            ids = np.array([[7 + step, 255 + step // 2, 9, 9, 9]], np.int32)
            processor._update_sample_logprobs(LogprobsLists(ids, np.float32([[-1, -2, -3, -4, -5]]) - step, np.array([1])))
        found.append(Sampled.of(processor.logprobs, loads=257))
    plain, flat = found
    for name in ("drawn_from", "raw", "loads"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(flat, name))
    assert (plain.drawn_from.tolist(), plain.raw.tolist(), flat.uncut.tolist()) == ([-1, -2, -3], [-2, -3, -4], [-3, -4, -5])
    assert plain.loads.tolist() == [255, 255, 256]
    assert (plain.uncut is None) if asked == 1 else (plain.uncut.tolist() == [-3, -4, -5])


def test_a_response_that_is_aborted_before_its_first_token_has_none() -> None:
    from services.rollout.logprobs import Sampled
    from services.rollout.vllm_logprobs import PlainLogprobs

    sampled = Sampled.of(PlainLogprobs(2), loads=3)
    assert [len(column) for column in (sampled.drawn_from, sampled.raw, sampled.loads)] == [0, 0, 0]


def test_pieces_of_a_stream_put_together_keep_entries_of_the_same_token() -> None:
    """vLLM puts pieces together that their reader has not fetched in time; our entries have marks for tokens."""
    from vllm.logprobs import FlatLogprobs, Logprob

    from services.rollout.vllm_logprobs import install

    install()
    pieces = [FlatLogprobs(), FlatLogprobs()]
    for piece, tokens in zip(pieces, ([7, 3, 3], [3, 3, 3]), strict=True):
        piece.append_fast(tokens, [-1.0, -2.0, -3.0], iter([1, 2, 3]), ["a", "b", "c"])
    pieces[0].extend(pieces[1])
    assert (pieces[0].start_indices, pieces[0].end_indices) == ([0, 3], [3, 6])
    assert pieces[0].token_ids == [7, 3, 3, 3, 3, 3]
    assert pieces[0].logprobs == [-1.0, -2.0, -3.0] * 2
    assert pieces[0].decoded_tokens == ["a", "b", "c"] * 2
    pieces[0].extend([{5: Logprob(-4.0, 1, "d")}])
    assert (pieces[0].token_ids[-1], pieces[0].end_indices[-1]) == (5, 7)
