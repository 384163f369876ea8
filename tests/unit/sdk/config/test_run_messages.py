"""What a wrong option is answered with: its path, its value, the rule, and the fix."""

import pytest

from baton.config.problems import show


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"runtime": {"num_episode": 2.0}},
            "runtime.num_episode: got 2.0; must be a whole number; write 2",
        ),
        (
            {"runtime": {"num_episode": "2"}},
            'runtime.num_episode: got "2"; must be a whole number; write 2 without quotes',
        ),
        (
            {"runtime": {"num_episode": "many"}},
            'runtime.num_episode: got "many"; must be a whole number; write digits, as 4',
        ),
        (
            {"runtime": {"num_episode": True}},
            "runtime.num_episode: got true; must be a whole number; write digits, as 4",
        ),
        (
            {"runtime": {"num_episode": None}},
            "runtime.num_episode: got null; must be a whole number; remove the line to get the default",
        ),
        (
            {"models": {"policy": {"prompt_logprobs": "None"}}},
            'models.policy.prompt_logprobs: got "None"; must be a whole number; write null, or remove the line',
        ),
        (
            {"runtime": {"drop_last": 1}},
            "runtime.drop_last: got 1; must be true or false; write true or false, without quotes",
        ),
        (
            {"runtime": {"drop_last": "False"}},
            'runtime.drop_last: got "False"; must be true or false; write false without quotes',
        ),
        (
            {"runtime": {"drop_last": "off-peak"}},
            'runtime.drop_last: got "off-peak"; must be true or false; write true or false, without quotes',
        ),
        (
            {"models": {"policy": {"temperature": True}}},
            "models.policy.temperature: got true; must be a number; write digits, as 0.5",
        ),
        (
            {"runtime": {"colocation": "policy,reference"}},
            'runtime.colocation: got "policy,reference"; must be a list; write [policy,reference]',
        ),
        (
            {"runtime": {"exp_name": 5}},
            "runtime.exp_name: got 5; must be text; put it in quotes",
        ),
        (
            {"models": {"policy": None}},
            "models.policy: got null; must be a section; remove the line to get the default",
        ),
        (
            {"models": {"policy": {"top_p": 1.5}}},
            "models.policy.top_p: got 1.5; must be at most 1.0; write a number at most 1.0",
        ),
        (
            {"models": {"policy": {"gpu_memory_utilization": 0}}},
            "models.policy.gpu_memory_utilization: got 0; must be greater than 0.0; write a number greater than 0.0",
        ),
        (
            {"runtime": {"stream_data_loader_type": "relay"}},
            "runtime.stream_data_loader_type: got \"relay\"; must be 'fixed' or 'dynamic'; choose one of these",
        ),
        (
            {"models": {"ppo_policy": {"trainable": False}}},
            "models.ppo_policy.trainable: got false; must be true; choose one of these",
        ),
        (
            {"models": {"ppo_policy": {"lora": {"lora_layer": "ColumnParallelLinear, Conv"}}}},
            'models.ppo_policy.lora.lora_layer: got "ColumnParallelLinear, Conv"; must be a comma-separated '
            "choice of ColumnParallelLinear, RowParallelLinear, LinearLayer, VocabParallelEmbedding, "
            "Embedding; "
            "remove Conv",
        ),
        (
            {"prompts": {"path": "x"}},
            "prompts.source: is missing; must say which kind of prompts this is; add it",
        ),
        (
            {"prompts": {"source": "web"}},
            "prompts.source: got \"web\"; must be one of 'reasoning_gym', 'jsonl', 'app'; choose one",
        ),
        (
            {"prompts": {"source": "jsonl", "path": "x", "template": "Q:"}},
            'prompts.template: got "Q:"; must contain {prompt}, which stands for the prompt; add {prompt} where it belongs',
        ),
        (
            {"prompts": {"source": "jsonl"}},
            "prompts.path: is missing; must be given; add it",
        ),
        (
            {"rewards": {"functions": [{"function": "verifier"}, {"function": "a b"}]}},
            'rewards.functions.1.function: got "a b"; must be a built-in name or module:callable; '
            "write it like my_package.my_module:my_function",
        ),
        (
            {"services": {"trainer_address": "localhost"}},
            'services.trainer_address: got "localhost"; must be host:port; write it like 10.0.0.1:50051 or [::1]:50051',
        ),
    ],
)
def test_a_wrong_value_is_answered_with_path_value_rule_and_fix(error_of, sections, line):
    assert error_of(**sections).splitlines()[1:] == ["  " + line]


@pytest.mark.parametrize(
    ("sections", "path", "answer"),
    [
        (
            {"runtime": {"max_replay_episode": 1}},
            "runtime.max_replay_episode",
            "did you mean max_relay_episode?",
        ),
        ({"runtme": {}}, "runtme", "did you mean runtime?"),
        ({"models": {"polcy": {}}}, "models.polcy", "did you mean policy?"),
        ({"models": {"critic": {}}}, "models.critic", "the keys here are policy, ppo_policy, reference"),
        ({"models": {"policy": {"Top_P": 1}}}, "models.policy.Top_P", "did you mean top_p?"),
        ({"runtime": {"lr": 1}}, "runtime.lr", "lr belongs in models.ppo_policy or models.ppo_value"),
        (
            {"models": {"policy": {"lora": {"rank": 1}}}},
            "models.policy.lora.rank",
            "the keys here are enable_lora",
        ),
        ({"algorithm": {"clip_ratio": 1}}, "algorithm.clip_ratio", "did you mean clip_ratio_low?"),
        ({"algorithm": {"name": "gspo", "dual_clip": 2}}, "algorithm.dual_clip", "belongs in algorithm with name: grpo"),
        (
            {"prompts": {"source": "jsonl", "path": "x", "promt_key": "q"}},
            "prompts.promt_key",
            "mean prompt_key?",
        ),
        (
            {"rewards": {"functions": [{"function": "f", "wieght": 1}]}},
            "rewards.functions.0.wieght",
            "mean weight?",
        ),
        (
            {"runtime": {"save_interval": 1}},
            "runtime.save_interval",
            "write save_episode_interval, which counts",
        ),
        (
            {"services": {"replay_episodes_max": 1}},
            "services.replay_episodes_max",
            "the keys here are host, ",
        ),
        ({"store": {"enforce_eagr": 1}}, "store.enforce_eagr", "did you mean models.policy.enforce_eager?"),
        ({"models": {"policy": {"bf16": True}}}, "models.policy.bf16", "write dtype: bfloat16"),
    ],
)
def test_an_unknown_key_is_answered_with_the_one_that_was_meant(error_of, sections, path, answer):
    message = error_of(**sections)
    assert f"  {path}: got " in message
    assert "is not an option" in message
    assert answer in message


def test_all_problems_are_listed_one_per_line(error_of):
    message = error_of(runtime={"tail": "cut", "seed": "x"}, models={"policy": {"n": 0}, "x": {}})
    head, *lines = message.splitlines()
    assert head.endswith("4 problems")
    assert [line.split(":")[0].strip() for line in lines] == [
        "runtime.tail",
        "runtime.seed",
        "models.policy.n",
        "models.x",
    ]


def test_a_problem_hides_the_consequences_that_pydantic_adds(error_of):
    message = error_of(models={"policy": {"num_gpu": "2"}, "ppo_policy": {"num_gpu": "2"}})
    assert len(message.splitlines()) == 3


def test_the_password_of_an_address_is_not_shown(error_of):
    message = error_of(store={"url": "http://user:secret@host"})
    assert "secret" not in message
    assert "host" in message


def test_a_long_value_is_cut():
    assert len(show("x" * 500)) == 80
    assert show("x" * 78) == '"' + "x" * 78 + '"'


def test_the_run_file_is_named_in_the_head_line(files, error_of):
    path = files(run="models: {}\nruntime: {seed: x}\n")
    assert error_of(path).startswith(f"{path}: 1 problem\n")
