"""The order of prompts, and what each source makes of a record."""

import json

import pytest
from harness import config

from baton.engine import Engine
from baton.errors import ConfigError
from services.coordinator.prompts import PromptOrder, build_prompts

APP = Engine(prompts=[{"prompt": f"p{i}", "i": i} for i in range(5)])


def indices(prompts, position, count):
    return [item.metadata["i"] for item in prompts.take(position, count, episode_id=0)]


def jsonl(tmp_path, *lines, **options):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return config(prompts={"source": "jsonl", "path": str(path), **options})


@pytest.mark.parametrize(
    ("size", "start", "count", "expected"),
    [
        (35, 32, 4, [32, 33, 34, 0]),  # an episode straddles the wrap
        (3, 0, 8, [0, 1, 2, 0, 1, 2, 0, 1]),  # and may go round more than once
        (100, 16, 4, [16, 17, 18, 19]),
        (10, 25, 2, [5, 6]),
    ],
)
def test_the_order_is_sequential_and_endless(size, start, count, expected):
    order = PromptOrder(size)
    assert [order.index(position) for position in range(start, start + count)] == expected


def test_shuffling_visits_all_prompts_in_an_order_of_its_own_on_each_pass():
    order, again, other = (PromptOrder(50, shuffle=True, seed=seed) for seed in (1, 1, 2))
    passes = [[order.index(position) for position in range(start, start + 50)] for start in (0, 50)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(50))
    assert passes[0] != passes[1]
    assert [again.index(position) for position in range(50, 100)] == passes[1]  # from the middle, as a resumed run does
    assert [other.index(position) for position in range(50)] != passes[0]


def test_takes_continue_where_the_last_ended():
    prompts = build_prompts(config(), APP)
    assert indices(prompts, 0, 3) + indices(prompts, 3, 4) == [0, 1, 2, 3, 4, 0, 1]


def test_drop_last_leaves_out_what_does_not_fill_a_batch():
    run = config(runtime={"drop_last": True, "generation_batch_size": 2}, models={"policy": {"num_replica": 2}})
    assert indices(build_prompts(run, APP), 0, 6) == [0, 1, 2, 3, 0, 1]


def test_drop_last_that_would_leave_nothing_is_refused():
    run = config(runtime={"drop_last": True, "generation_batch_size": 8})
    with pytest.raises(ConfigError, match=r"drop_last.*5 prompts do not fill one batch of 8"):
        build_prompts(run, APP)


def test_groups_are_named_by_episode_and_position():
    prompts = build_prompts(config(), APP)
    assert [item.group_id for item in prompts.take(4, 2, episode_id=3)] == ["e3-p4", "e3-p5"]


def test_template_and_system_prompt_wrap_what_the_model_sees_but_not_what_rewards_see(tmp_path):
    run = jsonl(tmp_path, {"prompt": "2+2", "answer": "4"}, template="Solve {prompt}!", system_prompt="Be brief.")
    item = next(build_prompts(run, Engine()).take(0, 1, 0))
    assert item.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Solve 2+2!"}]
    assert (item.text, item.metadata) == ("2+2", {"answer": "4"})


def test_a_chat_is_taken_as_it_is_and_its_last_turn_is_the_prompt(tmp_path):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "2+2"}]
    item = next(build_prompts(jsonl(tmp_path, {"q": chat}, prompt_key="q"), Engine()).take(0, 1, 0))
    assert (item.messages, item.text, item.metadata) == (chat, "2+2", {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"prompts.jsonl:2: must be a JSON object"),
        ("[1]", r"prompts.jsonl:2: must be a JSON object with the key 'prompt'"),
        ('{"question": "x"}', r"prompts.jsonl:2: .*'prompt'.*set prompts.prompt_key"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(ConfigError, match=message):
        build_prompts(jsonl(tmp_path, {"prompt": "x"}, line), Engine())


@pytest.mark.parametrize("prompt", [5, [], ["x"], [{"role": "user"}]])
def test_a_prompt_that_is_neither_text_nor_chat_is_refused(prompt):
    with pytest.raises(ConfigError, match=r"prompt 0: .*a text or a list of"):
        next(build_prompts(config(), Engine(prompts=[{"prompt": prompt}])).take(0, 1, 0))


def test_metadata_that_is_not_json_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"prompt 0: metadata 'answer' cannot be written as JSON"):
        next(build_prompts(config(), Engine(prompts=[{"prompt": "x", "answer": {1, 2}}])).take(0, 1, 0))


def test_an_app_without_prompts_and_a_file_beside_an_app_with_prompts_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"the app's engine has no prompts"):
        build_prompts(config(), Engine())
    with pytest.raises(ConfigError, match=r"is 'jsonl', but the app's engine has prompts too"):
        build_prompts(jsonl(tmp_path, {"prompt": "x"}), APP)
    with pytest.raises(ConfigError, match=r"'app' has no prompts"):
        build_prompts(config(), Engine(prompts=[]))
    with pytest.raises(ConfigError, match=r"there is no such file"):
        build_prompts(config(prompts={"source": "jsonl", "path": "nowhere.jsonl"}), Engine())


def test_reasoning_gym_prompts_can_be_verified_from_their_metadata():
    from services.coordinator.verifier import verifier

    params = {"max_terms": 2, "max_digits": 1}
    task = {"source": "reasoning_gym", "task": "chain_sum", "size": 10, "seed": 5, "params": params}
    prompts = build_prompts(config(prompts=task), Engine())
    items = list(prompts.take(0, 12, 0))
    assert items[0].messages[0]["content"] == items[10].messages[0]["content"] != items[1].messages[0]["content"]
    for item in items:
        terms = item.text.removesuffix(" =").rpartition(": ")[2]
        right = str(eval(terms))
        assert verifier(item.text, f" {right}\n", json.loads(json.dumps(item.metadata))) == 1.0
        assert verifier(item.text, f"{right} I think", item.metadata) == 0.0
        assert verifier(item.text, f"9999 is wrong, {right} is right.", item.metadata, answer="last_number") == 1.0
        assert verifier(item.text, f"{right} is wrong, 9999 is right.", item.metadata, answer="last_number") == 0.0
        assert verifier(item.text, "I do not know", item.metadata, answer="last_number") == 0.0
        assert 0 < verifier(item.text, f"{right} I think", item.metadata, partial=True) < 1
    with pytest.raises(KeyError, match=r"needs prompts\.source: reasoning_gym"):
        verifier("x", "1", {})


def test_a_task_that_reasoning_gym_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"cannot make task 'nonsense'.*check prompts.task"):
        build_prompts(config(prompts={"source": "reasoning_gym", "task": "nonsense"}), Engine())
