"""Stopping vLLM's scheduler, without the 20 ms that `AsyncLLM.pause_generation` then waits for the looks of it."""

from vllm.v1.engine.async_llm import AsyncLLM


async def pause(llm: AsyncLLM, *, keep: bool) -> None:
    """Returns when no step is under way and nothing computed before is cached. Responses stand still, or are aborted."""
    await llm.engine_core.pause_scheduler_async(mode="keep" if keep else "abort", clear_cache=True)
