"""baton.local.plan: the run's directory holds a run file that needs no other."""

import pytest

from baton.config import load_run
from baton.errors import ConfigError
from baton.local.plan import make_plan


@pytest.fixture
def run_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMIT", "48")
    (tmp_path / "base.yaml").write_text("runtime: {sample_per_episode: 8, num_inference_per_prompt: 4, exp_name: my run}\n")
    (tmp_path / "policy.yaml").write_text("max_new_tokens: ${LIMIT}\n")
    path = tmp_path / "run.yaml"
    path.write_text("includes: [base.yaml]\nmodels: {policy: {model_config_file: policy.yaml, max_paddings: 3}}\n")
    return path


def test_the_saved_run_file_holds_includes_model_files_environment_and_overrides(run_file, tmp_path, monkeypatch):
    plan, _ = make_plan(run_file, ["runtime.num_episode=3"], output_dir=tmp_path / "runs")
    monkeypatch.delenv("LIMIT")
    saved = load_run(plan.directory.run_file)
    assert saved.runtime.sample_per_episode == 8
    assert saved.models.policy.max_new_tokens == 48
    assert saved.runtime.num_episode == 3
    assert plan.directory.run_file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("written", "value"), [("$${LIMIT} of $$${LIMIT}", "${LIMIT} of $${LIMIT}"), ("${TEMPLATE}", "${UNSET}")]
)
def test_the_saved_run_file_has_no_placeholders_left_to_replace(run_file, tmp_path, monkeypatch, written, value):
    monkeypatch.setenv("TEMPLATE", "${UNSET}")
    prompts = ["source=reasoning_gym", "task=chain_sum", f"params.marks=['{written}']", f"system_prompt={written}"]
    plan, _ = make_plan(run_file, [f"prompts.{option}" for option in prompts], output_dir=tmp_path / "runs")
    assert (plan.config.prompts.system_prompt, plan.config.prompts.params) == (value, {"marks": [value]})
    assert load_run(plan.directory.run_file).prompts == plan.config.prompts


def test_options_without_effect_are_said_once_with_their_reason(run_file, tmp_path):
    _, remarks = make_plan(run_file, output_dir=tmp_path / "runs")
    assert len(remarks) == 1
    assert remarks[0].startswith("models.policy.max_paddings has no effect: ")


def test_the_default_run_id_is_the_experiment_and_the_time(run_file, tmp_path):
    plan, _ = make_plan(run_file, output_dir=tmp_path / "runs")
    name, date, time = plan.run_id.rsplit("-", 2)
    assert (name, len(date), len(time)) == ("my-run", 8, 6)


def test_a_run_that_cannot_start_leaves_no_directory(run_file, tmp_path):
    with pytest.raises(ConfigError, match=r"models.policy.model"):
        make_plan(run_file, ["models.policy.model=/no/such"], output_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("text", "expected"), [("", "ppo"), ("algorithm: {name: gspo}\n", "gspo")])
def test_a_file_without_an_algorithm_gets_that_of_the_program_s_engine(run_file, tmp_path, monkeypatch, text, expected):
    program = f"engine_{tmp_path.name.replace('-', '_')}_{expected}"
    (tmp_path / f"{program}.py").write_text(
        "from baton.engine import Model, RLHFEngine\n"
        "before, after = map(Model, ('policy', 'reference')), map(Model, ('value', 'ppo_policy', 'ppo_value'))\n"
        "engine = RLHFEngine(*before, None, *after)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    roles = ["models.reference={}", "models.value={}", "models.ppo_value={}"] if expected == "ppo" else []
    with run_file.open("a") as file:
        file.write(text)
    plan, _ = make_plan(run_file, roles, app=f"{program}:engine", output_dir=tmp_path / "runs")
    assert load_run(plan.directory.run_file).algorithm.name == expected
