"""A model that cannot play its role is refused at the start: another vocabulary, no scalar head, several labels."""

import shutil

import pytest

from baton.errors import ConfigError
from models import make_model
from services.trainer.megatron.heads import check_head
from services.trainer.vocabulary import check_vocabulary


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """policy; smaller: fewer tokens; larger: rows that no token has; other: other words; bare ones: no tokenizer."""
    root = tmp_path_factory.mktemp("models")
    policy = make_model(root / "policy", layers=1)
    make_model(root / "smaller", layers=1, vocabulary=400)
    make_model(root / "larger", layers=1, vocabulary=520)
    make_model(root / "other", layers=1)
    for name, source in (("larger", policy), ("bare", None), ("bare smaller", None)):
        if source is None:
            shutil.copytree(root / ("smaller" if "smaller" in name else "policy"), root / name)
        for file in (root / name).glob("tokenizer*"):
            file.unlink()
            if source:
                shutil.copyfile(source / file.name, root / name / file.name)
    words = root / "other" / "tokenizer.json"
    words.write_text(words.read_text().replace('"w5"', '"x"').replace('"w6"', '"w5"').replace('"x"', '"w6"'))
    make_model(root / "scored", layers=1, labels=1)
    make_model(root / "sorted", layers=1, labels=3)
    return root


def test_a_model_of_the_policys_tokens_may_have_rows_that_pad_its_vocabulary(models):
    check_vocabulary("reference", models / "policy", models / "policy")
    check_vocabulary("reference", models / "larger", models / "policy")


def test_a_model_without_a_tokenizer_is_taken_at_its_size(models):
    check_vocabulary("reward", models / "bare", models / "policy")
    check_vocabulary("reward", models / "policy", models / "bare")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("smaller", r"models\.reference\.model: .*smaller has a vocabulary of 400 tokens, and the policy .* of 512"),
        ("bare smaller", "has a vocabulary of 400 tokens, and the policy"),
        ("other", r"the tokenizer of .*other is not that of the policy .*: 'w\d' is token \d of the policy's and \d of the"),
    ],
)
def test_another_vocabulary_than_the_policys_is_refused_with_what_differs(models, name, reason):
    with pytest.raises(ConfigError, match=reason):
        check_vocabulary("reference", models / name, models / "policy")


def test_a_reward_model_needs_a_scalar_head_and_a_critic_may_start_without_one(models):
    check_head(models / "scored", "reward", required=True)
    check_head(models / "policy", "ppo_value", required=False)
    with pytest.raises(ConfigError, match=r"models\.reward\.model: .*Qwen3ForCausalLM\) has no scalar head score\.weight"):
        check_head(models / "policy", "reward", required=True)


@pytest.mark.parametrize("required", [True, False])
def test_a_head_of_several_labels_is_refused_with_their_number(models, required):
    with pytest.raises(ConfigError, match=r"models\.reward\.model: .* classifies into 3 labels; it must have one"):
        check_head(models / "sorted", "reward", required=required)
