"""Includes, model files, overrides, older names, and YAML itself."""

import pytest

from baton.config import load_run


def test_own_file_wins_over_later_include_and_later_over_earlier(files):
    cfg = load_run(
        files(
            run="includes: [a.yaml, b.yaml]\nmodels: {}\nruntime: {seed: 3}\n",
            a="runtime: {seed: 1, num_episode: 1, log_interval: 1}\nmodels: {policy: {top_k: 5}}\n",
            b="runtime: {seed: 2, num_episode: 2}\n",
        )
    )
    assert (cfg.runtime.seed, cfg.runtime.num_episode, cfg.runtime.log_interval) == (3, 2, 1)
    assert cfg.models.policy.top_k == 5


def test_mappings_merge_and_lists_are_replaced(files):
    base = """
        models: {}
        rewards: {workers: 3, functions: [{function: verifier}, {function: digits_only}]}
    """
    run = "includes: [base.yaml]\nrewards: {functions: [{function: mine}]}\n"
    rewards = load_run(files(run=run, base=base)).rewards
    assert rewards.workers == 3
    assert [item.function for item in rewards.functions] == ["mine"]


def test_includes_are_found_beside_the_file_that_names_them(files):
    cfg = load_run(
        files(
            run="includes: [parts/a.yaml]\nmodels: {}\n",
            parts__a="includes: [deep/b.yaml]\nruntime: {seed: 5}\n",
            parts__deep__b="runtime: {seed: 1, num_episode: 9}\n",
        )
    )
    assert (cfg.runtime.seed, cfg.runtime.num_episode) == (5, 9)


def test_an_include_may_be_chosen_by_a_variable(files, monkeypatch):
    monkeypatch.setenv("BATON_SIZE", "small")
    path = files(run="includes: ['${BATON_SIZE}.yaml']\nmodels: {}\n", small="runtime: {seed: 8}\n")
    assert load_run(path).runtime.seed == 8


@pytest.mark.parametrize(
    "run", ["includes: ['${BATON_UNSET}.yaml']", "models: {policy: {model_config_file: '${BATON_UNSET}'}}"]
)
def test_a_file_name_with_an_unset_variable_is_an_error(files, error_of, monkeypatch, run):
    monkeypatch.delenv("BATON_UNSET", raising=False)
    assert "needs the environment variable BATON_UNSET" in error_of(files(run=run + "\n"))


@pytest.mark.parametrize(("name", "rule"), [("3", "must be text"), ("null", "must be text"), ("''", None)])
def test_the_name_of_a_model_file_is_text(files, error_of, name, rule):
    path = files(run=f"models: {{policy: {{model_config_file: {name}}}}}\n")
    if rule is None:
        assert load_run(path).models.policy.model_config_file == ""
    else:
        assert f"models.policy.model_config_file: got {name}; {rule}" in error_of(path)


def test_a_circle_of_includes_is_an_error_that_shows_it(files, error_of):
    message = error_of(files(run="includes: [a.yaml]\nmodels: {}\n", a="includes: [run.yaml]\n"))
    assert "circle" in message
    assert "a.yaml" in message


@pytest.mark.parametrize("text", ["includes: base.yaml", "includes: [3]", "includes: {a: 1}"])
def test_includes_must_be_a_list_of_names(files, error_of, text):
    assert "must be a list of file names" in error_of(files(run=f"{text}\nmodels: {{}}\n", base="models: {}\n"))


def test_a_missing_include_names_its_path(files, error_of):
    assert "gone.yaml: cannot be read" in error_of(files(run="includes: [gone.yaml]\nmodels: {}\n"))


def test_keys_of_a_section_win_over_its_model_file(files):
    cfg = load_run(
        files(
            conf__run="""
                models:
                  policy:
                    model_config_file: ../models/policy.yaml
                    top_p: 0.5
                    batch_generation: {ranking: true}
            """,
            models__policy="""
                includes: [base.yaml]
                top_p: 0.9
                top_k: 7
                batch_generation: {ranking: false, min_prompt_length: 4}
            """,
            models__base="top_k: 3\ntemperature: 0.6\n",
        )
    )
    policy = cfg.models.policy
    assert (policy.top_p, policy.top_k, policy.temperature) == (0.5, 7, 0.6)
    assert (policy.batch_generation.ranking, policy.batch_generation.min_prompt_length) == (True, 4)
    assert policy.model_config_file == "../models/policy.yaml"


def test_a_missing_model_file_names_the_option_and_the_path(files, error_of):
    message = error_of(files(run="models: {policy: {model_config_file: gone.yaml}}\n"))
    assert "models.policy.model_config_file" in message
    assert "gone.yaml" in message


def test_an_unknown_key_in_a_model_file_is_an_error_of_its_section(files, error_of):
    path = files(run="models: {policy: {model_config_file: p.yaml}}\n", p="top_pp: 0.9\n")
    assert "models.policy.top_pp: got 0.9; is not an option; did you mean top_p?" in error_of(path)


OVERRIDES = [
    ("runtime.seed=7", lambda cfg: cfg.runtime.seed, 7),
    ("models.ppo_policy.lr=1e-5", lambda cfg: cfg.models.ppo_policy.lr, 1e-5),
    ("runtime.exp_name=a=b", lambda cfg: cfg.runtime.exp_name, "a=b"),
    ("runtime.save_episode_interval=null", lambda cfg: cfg.runtime.save_episode_interval, None),
    ("models.policy.enforce_eager=true", lambda cfg: cfg.models.policy.enforce_eager, True),
    ("runtime.colocation=[policy]", lambda cfg: cfg.runtime.colocation, ["policy"]),
    ("rewards.functions.0.weight=2", lambda cfg: cfg.rewards.functions[0].weight, 2),
    ("models.reference={}", lambda cfg: cfg.models.reference is not None, True),
    ("models.policy.lora.lora_dim=4", lambda cfg: cfg.models.policy.lora.lora_dim, 4),
    ("runtime.seed=${BATON_UNSET_SEED:11}", lambda cfg: cfg.runtime.seed, 11),
]


@pytest.mark.parametrize(("override", "read", "value"), OVERRIDES)
def test_an_override_has_yaml_type_and_wins(files, override, read, value):
    run = """
        runtime: {seed: 1, save_episode_interval: 5}
        models: {policy: {model_config_file: p.yaml}}
        rewards: {functions: [{function: verifier}]}
    """
    assert read(load_run(files(run=run, p="enforce_eager: false\n"), [override])) == value


def test_the_last_override_of_an_option_wins(files):
    assert load_run(files(run="models: {}\n"), ["runtime.seed=1", "runtime.seed=2"]).runtime.seed == 2


def test_an_override_reaches_into_a_renamed_section(files):
    with pytest.warns(FutureWarning):
        runtime = load_run(files(run="models: {}\nrlhf: {seed: 1, num_episode: 4}\n"), ["runtime.seed=2"]).runtime
    assert (runtime.seed, runtime.num_episode) == (2, 4)


@pytest.mark.parametrize("override", ["runtime.seed", "=3", "runtime..seed=1", "runtime.seed.x=1", "runtime.colocation.4=a"])
def test_a_malformed_override_is_an_error_that_quotes_it(files, error_of, override):
    path = files(run="models: {}\nruntime: {seed: 1, colocation: []}\n")
    assert repr(override) in error_of(path, (override,))


def test_a_misspelt_override_is_an_unknown_key(files, error_of):
    message = error_of(files(run="models: {}\n"), ("runtme.seed=1",))
    assert "runtme:" in message
    assert "did you mean runtime?" in message


@pytest.mark.parametrize(
    ("run", "old", "read", "value"),
    [
        ("models: {}\nrlhf: {seed: 6}", "rlhf", lambda cfg: cfg.runtime.seed, 6),
        (
            "models: {policy: {num_device: 2}}",
            "models.policy.num_device",
            lambda cfg: cfg.models.policy.num_gpu,
            2,
        ),
        (
            "models: {policy: {num_inference_per_prompt: 4}}",
            "models.policy.num_inference_per_prompt",
            lambda cfg: cfg.runtime.num_inference_per_prompt,
            4,
        ),
        (
            "models: {reference: {num_gpu: 4, moe_expert_model_parallel_size: 2, group: scorers}}",
            "models.reference.moe_expert_model_parallel_size",
            lambda cfg: cfg.models.reference.expert_model_parallel_size,
            2,
        ),
    ],
)
def test_an_old_name_works_and_warns_with_the_new_one(files, run, old, read, value):
    with pytest.warns(FutureWarning, match=f"^{old} is an old name"):
        assert read(load_run(files(run=run + "\n"))) == value


@pytest.mark.parametrize(
    "run",
    [
        "models: {}\nrlhf: {seed: 6}\nruntime: {seed: 7}",
        "models: {policy: {num_device: 2, num_gpu: 4}}",
        "models: {policy: {num_inference_per_prompt: 2}}\nruntime: {num_inference_per_prompt: 4}",
    ],
)
def test_an_old_name_that_contradicts_the_new_one_is_an_error(files, error_of, run):
    assert "must not differ from" in error_of(files(run=run + "\n"))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-6", 1e-6), ("5E-6", 5e-6), ("1.5e-06", 1.5e-6), (".5", 0.5), ("1", 1.0), ("1_0", 10.0)],
)
def test_numbers_are_read_as_people_write_them(files, text, value):
    path = files(run=f"models: {{ppo_policy: {{lr: {text}}}}}\n")
    assert load_run(path).models.ppo_policy.lr == value


@pytest.mark.parametrize("text", ["2026-01-01", "12:30", "1.2.3"])
def test_names_that_look_like_dates_or_times_stay_text(files, text):
    assert load_run(files(run=f"models: {{}}\nruntime: {{exp_name: {text}}}\n")).runtime.exp_name == text


def test_a_leading_zero_is_not_octal(files):
    assert load_run(files(run="models: {}\nruntime: {seed: 010}\n")).runtime.seed == 10


def test_a_repeated_key_is_an_error(files, error_of):
    assert "'seed' occurs twice" in error_of(files(run="models: {}\nruntime:\n  seed: 1\n  seed: 2\n"))


def test_a_merged_anchor_may_be_overridden_and_is_not_shared(files):
    run = """
        models:
          policy: &shared
            seq_length: 64
            lora: {lora_dim: 4}
          reference:
            <<: *shared
            seq_length: 64
    """.replace("            seq_length: 64\n", "            dtype: float32\n")
    models = load_run(files(run=run), ["models.reference.lora.lora_dim=5"]).models
    assert (models.policy.dtype, models.reference.dtype) == ("float32", "float32")
    assert (models.policy.lora.lora_dim, models.reference.lora.lora_dim) == (4, 5)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("models: [", "is not valid YAML"),
        ("- a", "holds a list; must be a mapping"),
        ("runtime: {seed: ${S:1}}", "put quotes around"),
        ("", "models: is missing"),
        ("models: 3", "models: got 3; must be a section"),
        ("models: {policy: 3}", "models.policy: got 3; must be a section"),
        ("!!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_run_file_says_which_and_why(files, error_of, text, part):
    message = error_of(files(run=text))
    assert part in message
    assert "run.yaml" in message


def test_a_missing_run_file_names_its_path(tmp_path, error_of):
    assert "nowhere.yaml: cannot be read" in error_of(tmp_path / "nowhere.yaml")


def test_a_dumped_run_loads_as_the_same_run(files, run_of):
    run = run_of(
        runtime={"num_inference_per_prompt": 8, "debug": True, "data_path": "x.jsonl"},
        models={
            "policy": {"num_gpu": 4, "tensor_model_parallel_size": 2, "max_new_tokens": 9},
            "reference": {},
        },
        rewards={"functions": [{"function": "verifier", "params": {"a": [1, "b"]}}]},
    )
    again = load_run(files(run=run.to_yaml()))
    assert again == run
    assert again.inert_options() == run.inert_options() != {}


@pytest.mark.parametrize("text", ["0812", "08", "1e5", "1.5e3", "0o7", "12:30", "2026-01-01", "yes", "", "<<", "${HOME}"])
def test_a_dumped_text_stays_text(files, run_of, text):
    functions = [{"function": "verifier", "params": {text: [text]}}]
    run = run_of(rewards={"functions": functions})
    assert load_run(files(run=run.to_yaml())) == run


@pytest.mark.parametrize("number", [812, 1e5, 1e-6, 1.5e300, -0.5, True, None])
def test_a_dumped_number_stays_a_number(files, run_of, number):
    run = run_of(rewards={"functions": [{"function": "verifier", "params": {"a": number}}]})
    assert repr(load_run(files(run=run.to_yaml()))) == repr(run)
