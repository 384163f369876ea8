"""What vLLM calls in each of its processes (`vllm.general_plugins`): adds our weight transfer and log-probabilities."""

BACKEND = "baton"


def register() -> None:
    """Makes WeightTransferConfig(backend="baton") known, has both log-probabilities returned, and ties vLLM's processes, and
    their shared memory, to the one that started them."""
    import multiprocessing
    import signal

    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    from services.common.server import end_with_parent
    from services.rollout import vllm_draws, vllm_logprobs, vllm_sampler, vllm_shared_memory

    if multiprocessing.parent_process() is not None:  # an engine core or a worker, not the service itself
        end_with_parent(signal.SIGKILL)  # vLLM's handler of SIGTERM deadlocks if a second one interrupts it
    vllm_draws.install()
    vllm_sampler.install()
    vllm_logprobs.install()
    vllm_shared_memory.install()
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "services.rollout.vllm_weights", "WeightReceiver")
