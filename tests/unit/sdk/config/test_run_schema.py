"""The schema itself: what it accepts, its defaults, its documentation, and what it costs to import."""

import subprocess
import sys

import pydantic
import pytest

from baton.config import RunConfig
from baton.config.inert import INERT_OPTIONS
from baton.config.schema_paths import option_paths, sections_in


def sections(section=RunConfig):
    yield section
    for field in section.model_fields.values():
        for inner in sections_in(field.annotation):
            yield from sections(inner)


@pytest.mark.parametrize("section", sorted(set(sections()), key=lambda s: s.__name__))
def test_every_option_is_documented(section):
    undocumented = [name for name, field in section.model_fields.items() if not (field.description or "").strip()]
    assert undocumented == []


def test_every_inert_option_exists_says_so_and_has_a_reason():
    existing = set(option_paths(RunConfig))
    for pattern, reason in INERT_OPTIONS.items():
        roles = ("policy", "ppo_policy", "reference") if "*" in pattern else ("policy",)
        assert all(pattern.replace("*", role) in existing for role in roles), pattern
        assert reason


def test_inert_options_are_those_documented_as_inert():
    documented = set()
    for path in option_paths(RunConfig):
        section = RunConfig
        *parents, name = path.split(".")
        for key in parents:
            section = sections_in(section.model_fields[key].annotation)[0]
        field = section.model_fields.get(name)
        if field is not None and field.description.startswith("Inert."):
            documented.add(path)
    listed = set()
    for pattern in INERT_OPTIONS:
        listed |= {pattern.replace("*", role) for role in RunConfig.model_fields["models"].annotation.model_fields}
    assert documented == listed


@pytest.mark.parametrize("section", [{}, {"dual_clip": 3.0}])
def test_an_algorithm_without_a_name_is_grpo(run_of, section):
    assert run_of(algorithm=section, runtime={"num_inference_per_prompt": 2}).algorithm.name == "grpo"


def test_only_the_inert_options_that_were_set_are_reported(run_of):
    assert run_of().inert_options() == {}
    run = run_of(
        runtime={"debug": True, "nsys": False, "seed": 1},
        runtime_env={"platform": "DLC"},
        models={
            "policy": {"max_paddings": 256, "zero_size": 1, "sync_frequency": 2},
            "reference": {"free_memory": True, "sync_frequency": 2, "num_cpu": 4},
        },
    )
    assert list(run.inert_options()) == [
        "runtime.debug",
        "runtime.nsys",
        "runtime_env.platform",
        "models.policy.zero_size",
        "models.policy.max_paddings",
        "models.reference.sync_frequency",
        "models.reference.num_cpu",
        "models.reference.free_memory",
    ]


@pytest.mark.parametrize("role", ["policy", "ppo_policy", "reference", "value", "ppo_value"])
def test_the_six_roles_are_known(run_of, role):
    assert run_of(models={role: {"seq_length": 8} if role == "policy" else {}}).models.roles()[role] is not None


def test_a_reward_model_is_a_role(run_of):
    assert run_of(models={"reward": {"model": "r"}}).model_name("reward") == "r"


def test_roles_that_are_left_out_do_not_exist(run_of):
    assert list(run_of().models.roles()) == ["policy", "ppo_policy"]


def test_a_run_cannot_be_changed(run_of):
    run = run_of()
    with pytest.raises(pydantic.ValidationError):
        run.runtime.seed = 3


def test_a_whole_number_is_accepted_for_a_fraction(run_of):
    temperature = run_of(models={"policy": {"temperature": 1}}).models.policy.temperature
    assert temperature == 1.0
    assert type(temperature) is float


@pytest.mark.parametrize(
    ("options", "limited", "limit"),
    [
        ({}, False, None),
        ({"max_new_tokens": 16}, True, 16),
        ({"max_new_tokens": 16, "new_token_limit": True}, True, 16),
        ({"max_new_tokens": 16, "new_token_limit": False}, False, None),
    ],
)
def test_giving_a_response_limit_turns_it_on(run_of, options, limited, limit):
    policy = run_of(models={"policy": options}).models.policy
    assert policy.new_token_limit is limited
    assert policy.response_limit == limit


def test_evaluation_takes_every_twin_and_nothing_else(run_of):
    twins = {
        "eval_temperature": 0.1,
        "eval_top_k": 2,
        "eval_top_p": 0.3,
        "eval_presence_penalty": 0.4,
        "eval_frequency_penalty": 0.5,
        "eval_repetition_penalty": 0.6,
    }
    policy = run_of(models={"policy": {"n": 2, "temperature": 0.9, **twins}}).models.policy
    evaluation = policy.for_evaluation()
    assert {key: getattr(evaluation, key.removeprefix("eval_")) for key in twins} == twins
    assert evaluation.n == 2
    assert policy.temperature == 0.9


def test_every_option_with_a_twin_is_swapped_for_evaluation(run_of):
    policy = run_of().models.policy
    names = [name for name in type(policy).model_fields if name.startswith("eval_")]
    marked = policy.model_copy(update={name: name for name in names}).for_evaluation()
    assert [getattr(marked, name.removeprefix("eval_")) for name in names] == names


def test_beam_search_means_temperature_zero(run_of):
    assert run_of(models={"policy": {"use_beam_search": True}}).models.policy.effective_temperature == 0
    assert run_of(models={"policy": {"temperature": 0.5}}).models.policy.effective_temperature == 0.5


@pytest.mark.parametrize(
    ("limit", "offset", "relayed", "kept"),
    [
        (0, 0, [], 0),
        (2, 0, [0, 1, 2, 3], 2),
        (2, 2, [2, 3], 2),
        (-1, 1, [1, 2, 3], None),
        (-7, 0, [0, 1, 2, 3], None),
    ],
)
def test_relay_starts_at_its_offset_and_negative_keeps_all(run_of, limit, offset, relayed, kept):
    runtime = run_of(runtime={"max_relay_episode": limit, "relay_episode_offset": offset}).runtime
    assert [episode for episode in range(4) if runtime.relays(episode)] == relayed
    assert runtime.relay_limit == kept
    assert runtime.relay_enabled is (limit != 0)


@pytest.mark.parametrize(
    ("output_dir", "exp_name", "run_dir"),
    [
        ("runs", "baton", "runs/baton"),
        ("/data/e1", "e1", "/data/e1"),
        ("/data/e10", "e1", "/data/e10/e1"),
        ("./", "x", "x"),
    ],
)
def test_the_run_directory_has_the_experiments_name_once(run_of, output_dir, exp_name, run_dir):
    assert run_of(runtime={"output_dir": output_dir, "exp_name": exp_name}).runtime.run_dir == run_dir


def test_data_path_stands_in_for_prompts(run_of):
    assert run_of(runtime={"data_path": "p.jsonl"}).prompts.path == "p.jsonl"
    assert run_of(runtime={"data_path": "p.jsonl"}, prompts={"source": "app"}).prompts.source == "app"


@pytest.mark.parametrize("name", ["verifier", "digits_only", "pkg.mod:fn", "mod:Class.method"])
def test_reward_functions_are_built_in_names_or_import_paths(run_of, name):
    assert run_of(rewards={"functions": [{"function": name}]}).rewards.functions[0].weight == 1.0


@pytest.mark.parametrize("name", ["", "a b", "mod:", ":fn", "pkg.mod", "mod:fn()", "a:b:c"])
def test_other_names_of_reward_functions_are_refused(error_of, name):
    assert "must be a built-in name or module:callable" in error_of(rewards={"functions": [{"function": name}]})


@pytest.mark.parametrize("url", ["redis://h:6379/0", "rediss://u:p@h", "unix:///tmp/s.sock"])
def test_store_addresses(run_of, url):
    assert run_of(store={"url": url}).store.url == url


def test_importing_the_schema_loads_no_heavy_library():
    heavy = ("torch", "vllm", "megatron", "redis", "numpy", "transformers")
    code = f"import sys, baton.config; sys.exit(str([m for m in {heavy!r} if m in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == "[]"
