"""Seeded draws on a CPU, where vLLM cannot take one back.

When a prompt is computed in several steps, vLLM samples in each of them, drops what the prompt's end did not lead to, and
sets the request's generator back by as many numbers. A generator of the CPU has no such count, and vLLM's worker would end.
Here its whole state is kept before such a draw, and restored after it: a seeded response does not depend on how its prompt
was cut.
"""

from typing import Any

_WRAPPED = "_baton_draws"


def install() -> None:
    """Once in each process that samples; a second call changes nothing."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner  # the CPU's is made of it

    if hasattr(GPUModelRunner, _WRAPPED):
        return
    sample, settle = GPUModelRunner._sample, GPUModelRunner._bookkeeping_sync

    def keeping(self: Any, *arguments: Any, **options: Any) -> Any:
        kept = [(generator, generator.get_state()) for generator in _dropped(self).values()]
        output = sample(self, *arguments, **options)
        for generator, state in kept:
            generator.set_state(state)
        return output

    def sparing(self: Any, *arguments: Any, **options: Any) -> Any:
        spared, generators = _dropped(self), self.input_batch.generators
        for index in spared:
            del generators[index]
        try:
            return settle(self, *arguments, **options)
        finally:
            generators.update(spared)

    GPUModelRunner._sample, GPUModelRunner._bookkeeping_sync = keeping, sparing
    setattr(GPUModelRunner, _WRAPPED, True)


def _dropped(runner: Any) -> dict[int, Any]:
    """The generators, by index, of the requests of which this step's token is dropped; none on a device that can count."""
    generators = runner.input_batch.generators
    if not generators or runner.device.type != "cpu":
        return {}
    dropped = runner.discard_request_mask.np
    return {index: generator for index, generator in generators.items() if dropped[index]}
