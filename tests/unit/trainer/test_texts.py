"""Given prompts and completions become tokens as the chat template writes them, ended once."""

import pytest
from transformers import AutoTokenizer

from baton.api.trainer.v1 import scoring_pb2 as pb
from baton.errors import InvalidRequestError
from models import make_model
from services.trainer.texts import Texts

MARKED = (
    "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)
REWRITING = "{% if add_generation_prompt %}w9 {% endif %}{% for m in messages %}{{ m['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("texts") / "model", layers=1)


def texts_with(directory, tmp_path, template):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    return Texts({"ppo_policy": tmp_path})


def chat(completion, *contents):
    turns = [pb.ChatTurn(role="user", content=content) for content in contents]
    return pb.TextRecord(sample_id="a", group_id="g", chat=turns, completion=completion)


def words(tokens):
    """As make_model's tokenizer numbers them."""
    names = {0: "<pad>", 1: "<s>", 2: "</s>"}
    return [names.get(int(token), f"w{int(token) - 3}") for token in tokens]


def test_a_text_is_encoded_as_it_is_and_its_completion_is_ended(directory):
    record = pb.TextRecord(sample_id="a", group_id="g", prompt_text="w1 w2", completion="w3")
    samples = Texts({"ppo_policy": directory}).tokenize([record])
    assert (samples.sample_ids, samples.group_ids) == (["a"], ["g"])
    assert words(samples.prompt_ids.rows()[0]) == ["w1", "w2"]
    assert words(samples.response_ids.rows()[0]) == ["w3", "</s>"]


def test_an_answer_ends_at_the_templates_end_token_and_not_after_it(directory, tmp_path):
    samples = texts_with(directory, tmp_path, MARKED).tokenize([chat("w3 w4", "w1"), chat("", "w1", "w2")])
    opening = ["<s>", "<pad>", "w1", "</s>", "<s>", "<pad>"]  # roles are no words that this tokenizer knows
    assert words(samples.prompt_ids.rows()[0]) == opening
    assert [words(row) for row in samples.response_ids.rows()] == [["w3", "w4", "</s>"], ["</s>"]]


def test_a_template_that_writes_no_end_token_gets_one_and_one_that_rewrites_the_opening_keeps_the_completion(
    directory, tmp_path
):
    plain = Texts({"ppo_policy": directory}).tokenize([chat("w3", "w1")])
    assert words(plain.prompt_ids.values) + words(plain.response_ids.values) == ["w1", "w3", "</s>"]
    rewritten = texts_with(directory, tmp_path, REWRITING).tokenize([chat("w3", "w1")])
    assert words(rewritten.prompt_ids.values) == ["w9", "w1"]
    assert words(rewritten.response_ids.values) == ["w3", "</s>"]


@pytest.mark.parametrize(
    ("record", "role", "reason"),
    [
        (pb.TextRecord(sample_id="a", completion="w1"), "", "record a: give it exactly one of prompt_text and chat"),
        (pb.TextRecord(sample_id="a", prompt_text=" ", completion="w1"), "", "record a has a prompt without a token"),
        (chat("w1", "w1"), "reward", "hosts ppo_policy, and not reward"),
    ],
)
def test_what_makes_no_sample_is_refused_by_name(directory, record, role, reason):
    with pytest.raises(InvalidRequestError, match=reason):
        Texts({"ppo_policy": directory}).tokenize([record], role)


def test_a_chat_without_a_chat_template_is_refused(directory, tmp_path):
    with pytest.raises(InvalidRequestError, match="has no chat template; write its prompt as text"):
        texts_with(directory, tmp_path, None).tokenize([chat("w1", "w1")])
