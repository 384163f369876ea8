"""What may be trained of what is sampled, and what a beam search cannot have."""

import json

import pytest

GROUPED = {"num_inference_per_prompt": 8, "sample_per_episode": 64}
CUTS = [{"top_p": 0.9}, {"top_k": 40}, {"presence_penalty": 0.5}, {"frequency_penalty": 0.5}, {"repetition_penalty": 1.1}]


@pytest.mark.parametrize("options", [*CUTS, {"use_beam_search": True}, {"use_beam_search": True, "top_k": 0}], ids=str)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_whatever_is_sampled_from_can_be_trained_at_any_temperature(run_of, temperature, options):
    run_of(runtime=GROUPED, models={"policy": {"temperature": temperature} | options}).require_startable()


LACKS = [*CUTS, {"eval_top_p": 0.9}, {"stop_token_list": "x"}, {"prompt_logprobs": 0}]


@pytest.mark.parametrize("option", LACKS, ids=str)
def test_what_a_beam_search_leaves_out_of_account_is_refused(run_of, error_of, option):
    ((name, value),) = option.items()
    (problem,) = error_of(models={"policy": {"use_beam_search": True} | option}).splitlines()[1:]
    assert problem.strip().startswith(f"models.policy.{name}: got {json.dumps(value)}; has no effect on a beam search")
    run_of(models={"policy": option})
