"""Values that follow from several options."""

import pytest

GROUPED = {"num_inference_per_prompt": 8, "sample_per_episode": 64}


def policy(**options):
    return {"models": {"policy": options}}


def trainer(**options):
    return {"models": {"ppo_policy": options}}


def test_prompts_and_group_size_follow_from_the_repeats(run_of):
    run = run_of(runtime={**GROUPED, "stream_data_loader_type": "DYNAMIC"}, **policy(n=2))
    assert run.prompts_per_episode == 8
    assert run.group_size == 16
    assert run.runtime.stream_data_loader_type == "dynamic"


def test_a_global_batch_that_is_left_out_is_the_micro_batch(run_of):
    assert run_of(runtime={"train_micro_batch_size": 6}).runtime.global_batch_size == 6
    assert run_of(runtime={"train_global_batch_size": None}).runtime.global_batch_size == 2
    assert run_of(runtime={"train_global_batch_size": 8}).runtime.global_batch_size == 8


@pytest.mark.parametrize(
    ("role", "options", "copies"),
    [
        ("policy", {}, 1),
        ("policy", {"num_replica": 3}, 3),
        ("policy", {"num_gpu": 8, "tensor_model_parallel_size": 2, "expert_model_parallel_size": 2}, 2),
        ("reference", {"num_gpu": 6, "pipeline_model_parallel_size": 3, "group": "scorers"}, 2),
    ],
)
def test_replicas_follow_from_the_gpus(run_of, role, options, copies):
    assert run_of(models={role: options}).models.roles()[role].num_replica == copies


def test_the_size_of_the_trainer_follows_from_the_gpus(run_of):
    batches = {"train_global_batch_size": 8}
    by_gpu = run_of(runtime=batches, **trainer(num_gpu=8, tensor_model_parallel_size=2)).models.ppo_policy
    assert (by_gpu.data_parallel_size, by_gpu.world_size) == (4, 8)
    by_hand = run_of(runtime=batches, **trainer(data_parallel_size=2, pipeline_model_parallel_size=2)).models.ppo_policy
    assert (by_hand.data_parallel_size, by_hand.world_size) == (2, 4)


def test_a_role_without_a_model_has_that_of_the_role_it_belongs_to(run_of):
    run = run_of(models={"policy": {"model": "p"}, "value": {}, "ppo_value": {"model": "v"}, "reference": {}})
    names = {role: run.model_name(role) for role in ("policy", "ppo_policy", "reference", "value", "ppo_value")}
    assert names == {"policy": "p", "ppo_policy": "p", "reference": "p", "value": "v", "ppo_value": "v"}
    assert run_of(models={"ppo_policy": {"lr": 1e-5}}).model_name("ppo_policy") == "smollm2-135m-instruct"


@pytest.mark.parametrize(
    ("models", "formats"),
    [
        ({"reference": {}}, {"reference": "float32"}),
        ({"reference": {"dtype": "bfloat16"}}, {"reference": "bfloat16"}),
        ({"reference": {"model": "r"}}, {"reference": "bfloat16"}),
        ({"ppo_value": {"dtype": "float32"}, "value": {}}, {"ppo_value": "float32", "value": "float32"}),
        ({"value": {}}, {"value": "bfloat16"}),
    ],
)
def test_a_role_with_the_weights_of_a_trained_one_has_its_number_format_unless_it_names_another(run_of, models, formats):
    run = run_of(models={"ppo_policy": {"dtype": "float32"}, **models})
    assert {role: run.dtype_name(role) for role in formats} == formats


@pytest.mark.parametrize(
    ("models", "loads"),
    [
        ({"reference": {}}, {"reference": "c"}),
        ({"reference": {"model": "r"}}, {"reference": None}),
        ({"reference": {"load": None}}, {"reference": None}),
        ({"reference": {"load": "d"}}, {"reference": "d"}),
        ({"value": {}, "ppo_value": {"load": "v"}, "reference": {}}, {"value": "v", "ppo_value": "v", "reference": "c"}),
        ({"reward": {"model": "r"}}, {"reward": None, "ppo_policy": "c"}),
    ],
)
def test_a_role_with_the_model_of_a_trained_one_starts_from_its_checkpoint_unless_it_names_its_own(run_of, models, loads):
    run = run_of(models={"ppo_policy": {"load": "c"}, **models})
    assert {role: run.load_of(role) for role in loads} == loads


def test_one_model_in_two_number_formats_is_remarked(run_of):
    single = {"policy": {"dtype": "float32"}, "ppo_policy": {"dtype": "float32"}, "reference": {}}
    assert run_of(models=single).remarks() == []
    other = run_of(models=single | {"reference": {"model": "r"}})
    assert other.remarks() == [], "another model may have any format"
    remarks = run_of(models=single | {"policy": {}, "reference": {"dtype": "bfloat16"}}).remarks()
    assert [remark.split(":")[0] for remark in remarks] == [
        "models.reference.dtype is bfloat16, and models.ppo_policy.dtype float32",
        "models.policy.dtype is bfloat16, and models.ppo_policy.dtype float32",
    ]


@pytest.mark.parametrize(
    ("lora", "reference", "remarked"),
    [
        ({"load": "adapter"}, {}, True),
        ({"load": "adapter"}, {"model": "m"}, True),
        ({"load": "adapter"}, {"load": "merged"}, False),
        ({"load": "adapter"}, {"model": "merged"}, False),
        ({"load": "adapter"}, None, False),
        ({}, {}, False),
        ({"load": "adapter", "enable_lora": False}, {}, False),
    ],
)
def test_a_reference_without_the_adapter_that_the_policy_starts_from_is_remarked(run_of, lora, reference, remarked):
    policy = {"model": "m", "lora": {"enable_lora": True, **lora}}
    remarks = run_of(models={"policy": {"model": "m"}, "ppo_policy": policy, "reference": reference}).remarks()
    told = "models.ppo_policy.lora.load: models.reference is the model without this adapter: "
    assert sum(remark.startswith(told) for remark in remarks) == remarked


@pytest.mark.parametrize(
    ("options", "seeds"),
    [
        ({}, [42, 43]),
        ({"seed": 7}, [7, 8]),
        ({"seed": 0}, [0, 1]),
        ({"seed": 7, "apply_replica_id_to_seed": False}, [7, 7]),
    ],
)
def test_engine_seeds_differ_by_replica_unless_told_otherwise(run_of, options, seeds):
    run = run_of(**policy(**options))
    assert [run.engine_seed(0), run.engine_seed(1)] == seeds


@pytest.mark.parametrize(
    ("runtime", "options", "size"),
    [
        ({}, {}, 2),
        ({"generation_batch_size": 16}, {}, 16),
        ({"generation_batch_size": 16}, {"generation_batch_size": 4}, 4),
        ({"generation_batch_size": 16}, {"generation_batch_size": 0}, 16),
        ({"sample_per_episode": 3}, {"num_replica": 3}, 1),
    ],
)
def test_request_size_is_the_models_own_else_the_runtimes(run_of, runtime, options, size):
    assert run_of(runtime=runtime, **policy(**options)).generation_batch_size("policy") == size


def test_the_trainer_reads_texts_by_the_policys_tokenizer(run_of):
    policy = {"model": "p", "tokenizer": "t"}
    run = run_of(models={"policy": policy, "reward": {"model": "r"}, "reference": {"tokenizer": "u"}})
    assert {role: run.tokenizer_name(role) for role in ("ppo_policy", "reward", "reference")} == {
        "ppo_policy": "t", "reward": None, "reference": "u",
    }  # fmt: skip


def test_the_policys_tokenizer_revision_is_of_its_tokenizer_alone(run_of):
    policy = {"model": "p", "tokenizer": "t", "tokenizer_revision": "v1"}
    run = run_of(models={"policy": policy, "reward": {"model": "r"}, "reference": {"tokenizer": "u"}})
    assert {role: run.tokenizer_revision(role) for role in ("ppo_policy", "reward", "reference")} == {
        "ppo_policy": "v1", "reward": None, "reference": None,
    }  # fmt: skip


def test_the_policys_revision_is_of_its_model_in_every_role(run_of):
    run = run_of(models={"policy": {"model": "p", "revision": "v1"}, "reward": {"model": "r"}, "reference": {}})
    assert {role: run.revision_of(role) for role in ("policy", "ppo_policy", "reference", "reward")} == {
        "policy": "v1", "ppo_policy": "v1", "reference": "v1", "reward": None,
    }  # fmt: skip


@pytest.mark.parametrize("deadline", ["train_step_s", "score_s", "publish_s", "checkpoint_s", "generate_s"])
def test_ranks_wait_for_each_other_as_long_as_any_command_of_the_trainer_may_take(run_of, deadline):
    assert run_of(deadlines={deadline: 9000}).deadlines.trainer_s == 9000
