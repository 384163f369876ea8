"""How large a run's largest micro-batch may be, as far as the run file tells."""

import pytest
import torch

from baton.config import RunConfig
from services.trainer.preflight import MicroBatch, free_memory, largest_micro_batch

GROUPS = {"num_inference_per_prompt": 8, "sample_per_episode": 64, "train_global_batch_size": 64}


def largest(policy: dict | None = None, *, trainer: dict | None = None, algorithm: str = "grpo", **runtime) -> MicroBatch:
    """Of a run in groups of 8; samples have up to 100 tokens, responses up to 10."""
    models = {"policy": {"seq_length": 100, "max_new_tokens": 10, **(policy or {})}, "ppo_policy": trainer or {}}
    if algorithm in ("dpo", "online_dpo"):
        models["reference"] = {}
    sections = {"runtime": GROUPS | runtime, "models": models, "algorithm": {"name": algorithm}}
    return largest_micro_batch(RunConfig.from_mapping(sections), 1000)


GROUP = 90 + 8 * 10
"""Tokens of a group whose prompt is as long as it may be."""


def test_a_prompt_that_a_group_shares_counts_once() -> None:
    assert largest(train_micro_batch_size=16) == MicroBatch(2 * GROUP, 4, "runtime.train_micro_batch_size")
    assert largest(train_micro_batch_size=4).tokens == 90 + 4 * 10


def test_a_micro_batch_that_cuts_groups_at_both_ends_has_a_prompt_more() -> None:
    assert largest(train_micro_batch_size=12, sample_per_episode=96, train_global_batch_size=96).tokens == 3 * 90 + 12 * 10


@pytest.mark.parametrize(
    "options",
    [
        {"num_training_epoch": 2}, {"max_relay_episode": 2}, {"trainer": {"share_prefix": False}},
        {"trainer": {"pad_samples": True}},
    ],
)  # fmt: skip
def test_where_samples_of_a_group_may_be_apart_each_counts_whole(options: dict) -> None:
    assert largest(train_micro_batch_size=16, **options).tokens == 16 * 100


def test_without_a_limit_a_response_may_fill_the_context_which_is_the_models_at_most() -> None:
    assert largest({"max_new_tokens": None}, train_micro_batch_size=8).tokens == 8 * 100
    assert largest({"seq_length": 5000, "max_new_tokens": None}, train_micro_batch_size=8).tokens == 8 * 1000


def test_a_budget_of_tokens_is_the_size_unless_the_ranks_share_is_smaller() -> None:
    assert largest(train_micro_batch_tokens=512) == MicroBatch(512, 3, "runtime.train_micro_batch_tokens")
    assert largest(train_micro_batch_tokens=1 << 20).tokens == 8 * GROUP
    halves = largest(train_micro_batch_tokens=1 << 20, trainer={"data_parallel_size": 2})
    assert (halves.tokens, halves.rows) == (4 * GROUP, 1)


def test_what_may_not_be_parted_may_be_larger_than_the_budget() -> None:
    assert largest(train_micro_batch_tokens=50, algorithm="online_dpo").tokens == GROUP
    assert largest(train_micro_batch_tokens=50).tokens == 100


def test_what_is_free_is_shared_by_the_ranks_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = free_memory(torch.device("cpu"))
    assert alone > 100 << 20
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(torch.device("cpu")) == pytest.approx(alone / 4, rel=0.2)
