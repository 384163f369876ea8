"""Trainer groups: which roles share processes, how these are laid out, and what cannot be."""

import pytest

BROKEN = {
    "both trainers share batches": (
        {"models": {"ppo_value": {"data_parallel_size": 2}}},
        "models.ppo_value.data_parallel_size: got 2; must be 1, as for models.ppo_policy: both are in group trainer",
    ),
    "roles of a group share its layout": (
        {"models": {"reference": {"tensor_model_parallel_size": 2}}},
        "models.reference.tensor_model_parallel_size: got 2; must be 1, as for models.ppo_policy",
    ),
    "what is trained is in the group trainer": (
        {"models": {"ppo_value": {"group": "critics"}}},
        'models.ppo_value.group: got "critics"; must be',
    ),
    "a value that is trained is evaluated where it is trained": (
        {"models": {"ppo_value": {}, "value": {"group": "critics"}}},
        'models.value.group: got "critics"; must be trainer',
    ),
    "value and ppo_value are one model": (
        {"models": {"ppo_value": {"model": "a"}, "value": {"model": "b"}}},
        'models.value.model: got "b"; must be the model of models.ppo_value (a)',
    ),
    "value has the number format of what it is": (
        {"models": {"ppo_value": {"dtype": "float32"}, "value": {"dtype": "bfloat16"}}},
        'models.value.dtype: got "bfloat16"; must be that of models.ppo_value (float32), whose weights value has',
    ),
    "a group has a plain name": ({"models": {"reference": {"group": "My group"}}}, 'models.reference.group: got "My group"'),
    "the main group's address has an option of its own": (
        {"services": {"group_addresses": {"trainer": "a:1"}}},
        'services.group_addresses.trainer: got "trainer"; has an option of its own; set services.trainer_address',
    ),
    "addresses are of groups that exist": (
        {"services": {"group_addresses": {"scorers": "a:1"}}},
        'services.group_addresses.scorers: got "scorers"; must name a group of the run',
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_named(error_of, rule):
    sections, line = BROKEN[rule]
    (problem,) = error_of(**sections).splitlines()[1:]
    assert problem.strip().startswith(line)


def test_roles_of_one_trainer_group_share_the_layout_of_its_first(run_of):
    run = run_of(
        runtime={"train_global_batch_size": 8},
        models={
            "policy": {},
            "ppo_policy": {"tensor_model_parallel_size": 2, "data_parallel_size": 2},
            "reference": {},
            "ppo_value": {"tensor_model_parallel_size": 2},
            "reward": {"model": "r", "group": "scorers", "pipeline_model_parallel_size": 2},
        },
    )
    groups = run.trainer_groups()
    assert {name: list(group.roles) for name, group in groups.items()} == {
        "trainer": ["ppo_policy", "reference", "ppo_value"],
        "scorers": ["reward"],
    }
    assert [(group.world_size, group.data_parallel_size) for group in groups.values()] == [(4, 2), (2, 1)]
