"""Who needs the text of each token of a log-probability gets it; the requests of Generate do not."""

from types import SimpleNamespace

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
