"""vLLM's AsyncLLM called in-process: what `rollout.py` compares the service with. Not a benchmark by itself.

    python benchmarks/bare_engine.py RUN_FILE SOCKET READY_FILE

Answers requests of JSON on a Unix socket until it is closed. The socket carries what to do and how long it took, never the
tokens that were generated, and it is idle while the clock runs.
"""

import asyncio
import json
import os
import sys
import time
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

from baton.config import load_run
from services.common.model_store import resolve_model
from services.common.server import write_ready_file
from services.rollout.environment import prepare_environment


async def generate(llm: Any, prompts: list[list[int]], responses: int, new_tokens: int) -> dict[str, float]:
    """Answers all prompts at once. Returns the seconds until the last token, and the number of tokens."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def answer(index: int, tokens: list[int]) -> int:
        params = SamplingParams(
            n=responses, temperature=1.0, max_tokens=new_tokens, ignore_eos=True, logprobs=0, flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        stream = llm.generate({"prompt_token_ids": tokens}, params, f"{started}-{index}")
        output = [item async for item in stream][-1]
        return sum(len(completion.token_ids) for completion in output.outputs)

    started = time.perf_counter()
    counts = await asyncio.gather(*(answer(index, tokens) for index, tokens in enumerate(prompts)))
    return {"seconds": time.perf_counter() - started, "tokens": sum(counts)}


async def serve(run_file: Path, socket: str, ready_file: Path) -> None:
    """Loads the engine of the run file, as the service does, then answers until the other end closes."""
    run = load_run(run_file)
    policy = run.models.policy
    prepare_environment(policy)
    from services.rollout.engine import VllmEngine

    engine = VllmEngine(policy, resolve_model(run.model_name("policy")), run.engine_seed(0))
    llm = engine.llm  # the service's own engine arguments, but from here on nothing of the service
    try:
        with Listener(socket) as listener:
            write_ready_file(ready_file, {"pid": os.getpid()})
            with listener.accept() as connection:
                while request := _receive(connection):
                    connection.send_bytes(json.dumps(await generate(llm, **request)).encode())
    finally:
        engine.shutdown()


def _receive(connection: Any) -> dict[str, Any] | None:
    try:
        return json.loads(connection.recv_bytes())
    except EOFError:
        return None


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
