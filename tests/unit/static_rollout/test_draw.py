"""Tokens drawn from logits: which may be drawn, how often each is, and its log-probability."""

import numpy as np
import pytest
import torch

from services.static_rollout.draw import Sampling, draw, drawn_from, row_uniforms

LOGITS = torch.tensor([1.0, 3.0, 2.0, -torch.inf, 0.0, 2.0])
"""Probabilities by rank: token 1, then 2 and 5 alike, then 0, then 4; token 3 is padding."""
OPTIONS = {
    "plain": Sampling(),
    "warm": Sampling(temperature=1.7),
    "top-k": Sampling(top_k=2),
    "top-p": Sampling(top_p=0.7),
    "all": Sampling(temperature=0.6, top_k=4, top_p=0.95),
}


def expected(options: Sampling) -> np.ndarray:
    """The distribution by its definition, token by token, in float64."""
    logits = LOGITS.double().numpy() / (options.temperature or 1.0)
    if options.top_k > 0:
        logits = np.where(logits >= np.sort(logits)[::-1][options.top_k - 1], logits, -np.inf)
    weights = np.exp(logits)
    weights /= weights.sum()
    kept, so_far = np.zeros(len(weights), bool), 0.0
    for token in np.argsort(-weights, kind="stable"):
        if so_far >= options.top_p:
            break
        kept[token], so_far = True, so_far + weights[token]
    weights = np.where(kept, weights, 0.0)
    return weights / weights.sum()


def many(options: Sampling, count: int) -> torch.Tensor:
    """Tokens of `count` rows."""
    rows = [row_uniforms(0, f"row {index}") for index in range(count)]
    return draw(LOGITS.expand(count, -1), [options] * count, rows).tokens_B


@pytest.mark.parametrize("name", OPTIONS)
def test_the_distribution_is_the_one_that_the_options_define(name: str) -> None:
    logprobs = drawn_from(LOGITS[None], [OPTIONS[name]])[0]
    np.testing.assert_allclose(logprobs.exp().numpy(), expected(OPTIONS[name]), atol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_are_drawn_as_often_as_the_distribution_says(name: str) -> None:
    count, weights = 20_000, expected(OPTIONS[name])
    observed = np.bincount(many(OPTIONS[name], count).numpy(), minlength=len(weights))
    likely = weights > 0
    assert observed[~likely].sum() == 0
    chi_square = ((observed - count * weights)[likely] ** 2 / (count * weights[likely])).sum()
    assert chi_square < 20.5  # at most 4 degrees of freedom: by chance once in 2,500


def test_top_k_keeps_all_tokens_that_are_as_likely_as_the_last_of_them() -> None:
    assert set(many(Sampling(top_k=2), 200).tolist()) == {1, 2, 5}


def test_log_probabilities_are_of_the_drawn_from_distribution_and_beside_them_of_the_model_and_uncut() -> None:
    options = [Sampling(temperature=0.5, top_k=3), Sampling(temperature=0.0, top_k=1)]
    drawn = draw(LOGITS.expand(2, -1), options, [row_uniforms(3, "a"), row_uniforms(3, "b")])
    model = LOGITS.log_softmax(-1)
    first, second = drawn.tokens_B.tolist()
    assert float(drawn.logprobs_B[0]) == pytest.approx(np.log(expected(options[0])[first]), abs=1e-6)
    assert drawn.model_logprobs_B.tolist() == pytest.approx(model[[first, second]].tolist(), abs=1e-6)
    uncut = [(LOGITS / 0.5).log_softmax(-1)[first], model[second]]
    assert drawn.uncut_logprobs_B.tolist() == pytest.approx([float(value) for value in uncut], abs=1e-6)
    assert second == 1  # greedy
    assert float(drawn.logprobs_B[1]) == pytest.approx(float(model[1]), abs=1e-6)  # the model's own, unfiltered


def test_a_rows_draws_do_not_depend_on_the_rows_beside_it() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 300)
    options = [Sampling(), Sampling(top_p=0.5), Sampling(temperature=0.0), Sampling(top_k=9), Sampling(temperature=2.0)]
    together = draw(logits, options, [row_uniforms(1, f"{i}") for i in range(5)])
    for i in reversed(range(5)):
        alone = draw(logits[i : i + 1], [options[i]], [row_uniforms(1, f"{i}")])
        assert [column[0].item() for column in alone] == pytest.approx([column[i].item() for column in together])


def test_random_numbers_depend_on_the_seed_and_on_the_rows_id() -> None:
    firsts = {row_uniforms(seed, row).random() for seed in (0, 1) for row in ("a/0", "a/1", "b/0")}
    assert len(firsts) == 6
    assert row_uniforms(7, "a/0").random() == row_uniforms(7, "a/0").random()


def test_the_ends_of_the_number_line_draw_likely_tokens() -> None:
    class Fixed:
        def __init__(self, number: float) -> None:
            self.random = lambda: number

    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    assert draw(logits, [Sampling()], [Fixed(0.0)]).tokens_B.tolist() == [1]
    assert draw(logits, [Sampling()], [Fixed(1 - 2**-53)]).tokens_B.tolist() == [2]
