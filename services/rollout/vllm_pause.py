"""Stopping vLLM's scheduler, without what `AsyncLLM.pause_generation` would add to the pause: 20 ms for the looks of it, and
the emptying of the cache, which can wait until the new weights are there."""

from vllm.v1.engine.async_llm import AsyncLLM


async def pause(llm: AsyncLLM, *, keep: bool) -> None:
    """Returns when no step is under way. Responses stand still, or are aborted."""
    await _pause(llm, keep=keep, clear_cache=False)


async def clear(llm: AsyncLLM, *, keep: bool) -> None:
    """Of a paused engine: nothing computed before is cached afterwards. It looks at every block of the cache, in Python."""
    await _pause(llm, keep=keep, clear_cache=True)


async def _pause(llm: AsyncLLM, *, keep: bool, clear_cache: bool) -> None:
    await llm.engine_core.pause_scheduler_async(mode="keep" if keep else "abort", clear_cache=clear_cache)
