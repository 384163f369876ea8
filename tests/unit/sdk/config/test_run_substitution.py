"""`${NAME}` and `${NAME:default}`."""

import pytest

from baton.config import load_run
from baton.config.substitution import substitute

ENV = {"NAME": "bob", "COUNT": "7", "EMPTY": "", "LIST": "[1, 2]", "QUOTED": "'7'", "WILD": "${COUNT}"}


def replaced(value):
    problems = []
    result = substitute(value, "a.b", problems, ENV)
    assert problems == []
    return result


def test_a_whole_value_takes_the_variable():
    assert replaced("${NAME}") == "bob"


def test_the_variable_wins_over_the_default():
    assert replaced("${COUNT:1}") == 7


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("null", None),
        ("", None),
        ("12", 12),
        ("-1", -1),
        ("0x10", 16),
        ("010", 10),
        ("5e-6", 5e-6),
        ("1.5", 1.5),
        ("[1, 2.0, a]", [1, 2.0, "a"]),
        ("{a: 1}", {"a": 1}),
        ("'12'", "12"),
        ("None", "None"),
        ("a:b:c", "a:b:c"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("{prompt}", "{prompt}"),
        ("a: b", "a: b"),
        ("x # y", "x # y"),
        ("<<", "<<"),
        ("[unclosed", "[unclosed"),
        ("<EOS>;</s>", "<EOS>;</s>"),
    ],
)
def test_a_default_has_yaml_type_and_may_hold_colons(text, value):
    result = replaced(f"${{MISSING:{text}}}")
    assert result == value
    assert type(result) is type(value)


def test_a_default_may_be_another_placeholder():
    assert replaced("${MISSING:${COUNT}}") == 7
    assert replaced("${MISSING:${GONE:x}-y}") == "x-y"


def test_an_empty_variable_is_null_and_not_the_default():
    assert replaced("${EMPTY:4}") is None


def test_a_variable_is_not_expanded_again():
    assert replaced("${WILD}") == "${COUNT}"


def test_placeholders_inside_longer_strings_insert_text():
    assert replaced("/data/${NAME}/${COUNT}.jsonl") == "/data/bob/7.jsonl"
    assert replaced("${NAME}${COUNT}") == "bob7"
    assert replaced("${COUNT}${COUNT}") == "77"
    assert replaced("${COUNT} $") == "7 $"


def test_blanks_around_a_whole_value_do_not_count():
    assert replaced(" ${COUNT} ") == 7


def test_placeholders_inside_lists_and_mappings_are_replaced():
    assert replaced({"x": ["${COUNT}", {"y": "${LIST}"}], "${NAME}": 1}) == {
        "x": [7, {"y": [1, 2]}],
        "${NAME}": 1,
    }


def test_a_doubled_dollar_is_a_literal_placeholder():
    assert replaced("$${NAME} ${NAME}") == "${NAME} bob"


@pytest.mark.parametrize("value", [3, 2.5, True, None, "plain", "$NAME", "{NAME}"])
def test_other_values_are_left_alone(value):
    assert replaced(value) == value


@pytest.mark.parametrize("text", ["${GONE}", "a ${GONE} b", "${MISSING:${GONE}}"])
def test_no_variable_and_no_default_names_the_variable_and_the_option(text):
    problems = []
    substitute({"c": [text]}, "a.b", problems, ENV)
    assert problems == ["a.b.c.0: needs the environment variable GONE, which is not set; set it, or write ${GONE:default}"]


@pytest.mark.parametrize("text", ["${NAME", "${}", "${1X}", "${a b}"])
def test_a_malformed_placeholder_is_an_error(text):
    problems = []
    substitute(text, "a.b", problems, ENV)
    assert len(problems) == 1
    assert "$${" in problems[0]


def test_all_unset_variables_of_a_run_file_are_listed_at_once(files, error_of, monkeypatch):
    monkeypatch.delenv("BATON_ONE", raising=False)
    monkeypatch.delenv("BATON_TWO", raising=False)
    path = files(run="models: {}\nruntime:\n  exp_name: ${BATON_ONE}\n  output_dir: /x/${BATON_TWO}\n")
    message = error_of(path)
    assert "runtime.exp_name: needs the environment variable BATON_ONE" in message
    assert "runtime.output_dir: needs the environment variable BATON_TWO" in message


def test_a_placeholder_that_is_overridden_needs_no_variable(files):
    path = files(run="models: {}\nruntime:\n  seed: ${BATON_SURELY_UNSET}\n")
    assert load_run(path, ["runtime.seed=3"]).runtime.seed == 3
