"""What vLLM calls in each of its processes (`vllm.general_plugins`): adds our weight transfer and log-probabilities."""

BACKEND = "baton"


def register() -> None:
    """Makes WeightTransferConfig(backend="baton") known, has both log-probabilities returned, and ties vLLM's processes to
    the one that started them."""
    import multiprocessing

    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    from services.common.server import end_with_parent
    from services.rollout import vllm_sampler

    if multiprocessing.parent_process() is not None:  # an engine core or a worker, not the service itself
        end_with_parent()
    vllm_sampler.install()
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "services.rollout.vllm_weights", "BroadcastReceiver")
