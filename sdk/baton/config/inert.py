"""The options that load but do nothing, each with the reason, so that start-up can say so once."""

_COLOCATION = "services are processes of their own; memory is not shared by swapping models in and out"
_WEIGHTS = "weights are sent as one verified transaction over a group that stays open"
_PROCESSES = "one process drives one device, and torchrun or vLLM starts it"
_CLUSTER = "services run from an installed package; nothing is copied to a cluster"
_VLLM = "today's vLLM no longer has this setting"
_PROFILER = "profile a service with the tools of its library"
_BATCH_KEYS = "samples are typed messages; no keys are looked up in a batch"

# A `*` stands for any role.
INERT_OPTIONS: dict[str, str] = {
    "runtime.max_iteration_per_sample": "tree search over samples is not offered",
    "runtime.bucket_size_mb_in_memory_manager": _COLOCATION,
    "runtime.debug": "the checks that this turned on are always on",
    "runtime.nsys": _PROFILER,
    "runtime.profiler_dir": _PROFILER,
    "runtime.coalesce_param": _WEIGHTS,
    "runtime.concurrent_comm": _WEIGHTS,
    "runtime.param_sync_comm_type": _WEIGHTS,
    "runtime.param_sync_max_workers": _WEIGHTS,
    "runtime.routed_expert_regrouping_comm_type": _WEIGHTS,
    "runtime.free_sync_collective_group": _WEIGHTS,
    "runtime.validate_param_sync": "every transfer is checked by its digest",
    "runtime.concurrent_setup": "services always start at the same time",
    "runtime.cpu_schedule_strategy": _PROCESSES,
    "runtime_env.pip": _CLUSTER,
    "runtime_env.py_modules": _CLUSTER,
    "runtime_env.working_dir": _CLUSTER,
    "runtime_env.platform": _CLUSTER,
    "runtime_env.excludes": _CLUSTER,
    "models.*.num_cpu": "omp_threads limits the cores of a process",
    "models.*.gpu_per_process": _PROCESSES,
    "models.*.cpu_per_process": _PROCESSES,
    "models.*.zero_size": "use_distributed_optimizer divides the optimizer's state",
    "models.*.model_type": "the model's own files say what it is",
    "models.*.offload_weights": _COLOCATION,
    "models.*.free_grad_buffers": _COLOCATION,
    "models.*.offload_optimizer_states": _COLOCATION,
    "models.*.free_memory": _COLOCATION,
    "models.*.force_free_memory": _COLOCATION,
    "models.policy.max_paddings": "vLLM no longer pads batches",
    "models.policy.swap_space": _VLLM,
    "models.policy.num_scheduler_steps": _VLLM,
    "models.policy.max_context_len_to_capture": _VLLM,
    "models.policy.sliding_window": "the model's own files say how wide its attention is",
    "models.policy.allow_padding_num_layers": _VLLM,
    "models.policy.vllm_prompt_key": _BATCH_KEYS,
    "models.policy.vllm_input_ids_key": _BATCH_KEYS,
    "models.policy.num_tokenize_threads": "the engine tokenises by itself",
    "models.policy.init_shuffle_prompts": "repeats of a prompt are consecutive; prompts.shuffle shuffles",
    "models.policy.log_metrics": "metrics are always exported",
    "models.policy.log_stats": "metrics are always exported",
}

OF_POLICY_ALONE: dict[str, str] = {
    "generation_batch_size": "the trainer packs what it scores by tokens, whatever number of prompts that is",
    "sync_frequency": "only the rollout gets weights; others keep theirs, or train them",
}
"""Options of every role that do something in `policy` only, and why not in others."""
