"""What `weight_sync.py` compares with, and the models that it needs: one process each. Not a benchmark by itself.

    python benchmarks/weight_sync_sides.py make DIRECTORY SHAPE_AS_JSON
    python benchmarks/weight_sync_sides.py bare RANK PORT BYTES SOCKET READY_FILE
    python benchmarks/weight_sync_sides.py vllm MODEL_DIRECTORY SOCKET ROUNDS RESULT_FILE
    python benchmarks/weight_sync_sides.py vllm-sender MODEL_DIRECTORY SOCKET READY_FILE
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import torch

LOOPBACK = "127.0.0.1"
WAIT = timedelta(hours=1)
"""For each other's next turn; whoever started a side ends it."""


def make(directory: str, shape: str) -> None:
    """A random model in bfloat16, a Qwen3 if the shape says no other, and a tokenizer with as many words."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from transformers import AutoConfig, AutoModelForCausalLM

    from models import make_tokenizer

    sizes = json.loads(shape)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        family, ends = sizes.pop("model_type", "qwen3"), {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = AutoConfig.for_model(family, **ends, **sizes)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    make_tokenizer(Path(directory), [f"w{number}" for number in range(sizes["vocab_size"] - 3)])


def bare(rank: str, port: str, nbytes: str, socket: str, ready: str) -> None:
    """Broadcasts one flat tensor from rank 0 to rank 1 whenever rank 0 is told to, and answers with the seconds."""
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    device, synchronize = ("cuda", torch.cuda.synchronize) if cuda else ("cpu", lambda: None)
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=f"tcp://{LOOPBACK}:{port}", rank=int(rank), world_size=2, timeout=WAIT
    )
    control = dist.new_group(backend="gloo", timeout=WAIT)  # waiting in a broadcast of NCCL's would keep the card busy
    flat = torch.zeros(int(nbytes), dtype=torch.uint8, device=device)
    goes_on = torch.ones(1)

    def turn() -> float:
        dist.barrier(group=control)
        synchronize()
        started = time.perf_counter()
        dist.broadcast(flat, 0)
        synchronize()
        seconds = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
        dist.all_reduce(seconds, dist.ReduceOp.MAX, group=control)
        return float(seconds)

    turn()
    if rank == "0":
        with Listener(socket) as listener:
            Path(ready).write_text("{}")
            with listener.accept() as connection, suppress(EOFError):
                while connection.recv_bytes():
                    dist.broadcast(goes_on, 0, group=control)
                    connection.send_bytes(json.dumps(turn()).encode())
        dist.broadcast(goes_on.zero_(), 0, group=control)
    while rank == "1":
        dist.broadcast(goes_on, 0, group=control)
        if not goes_on:
            break
        turn()
    dist.destroy_process_group()


def vllm_sender(directory: str, socket: str, ready: str) -> None:
    """Holds a checkpoint's tensors on the card, and sends them as vLLM's trainer side does whenever it is told to."""
    from safetensors.torch import load_file
    from vllm.distributed.weight_transfer.nccl_common import trainer_init
    from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

    torch.cuda.set_device(0)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        tensors |= load_file(path, device="cuda")
    described = {
        "names": list(tensors), "shapes": [list(tensor.shape) for tensor in tensors.values()],
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
    }  # fmt: skip
    with Listener(socket) as listener:
        Path(ready).write_text("{}")
        with listener.accept() as connection, suppress(EOFError):
            connection.send_bytes(json.dumps(described).encode())
            group = trainer_init(json.loads(connection.recv_bytes()))
            while connection.recv_bytes():
                packed_nccl_broadcast_producer(iter(tensors.items()), group, 0, lambda item: item[1])
                torch.cuda.synchronize()


def vllm(directory: str, socket: str, rounds: str, result: str) -> None:
    """Updates an engine of vLLM's by its own NCCL engine, with packed tensors, and keeps the seconds of each update."""
    from vllm import LLM
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferInitInfo

    from baton.local.store import free_port

    llm = LLM(
        model=directory, load_format="dummy", dtype="bfloat16", enforce_eager=True, max_model_len=1024, max_num_seqs=32,
        max_num_batched_tokens=2048, gpu_memory_utilization=0.4, weight_transfer_config=WeightTransferConfig(backend="nccl"),
    )  # fmt: skip
    with Client(socket) as sender:
        update = json.loads(sender.recv_bytes())
        meeting: dict[str, Any] = {"master_address": LOOPBACK, "master_port": free_port(), "world_size": 2}
        sender.send_bytes(json.dumps(meeting).encode())
        meeting["rank_offset"] = 1
        takes = {field.name for field in dataclasses.fields(NCCLWeightTransferInitInfo)}
        (meeting if "packed" in takes else update)["packed"] = True  # vLLM 0.32 wants it once, 0.26 with each update
        llm.init_weight_transfer_engine({"init_info": meeting})
        seconds = []
        for _ in range(int(rounds)):
            started = time.perf_counter()
            llm.start_weight_update()
            sender.send_bytes(b"send")
            llm.update_weights({"update_info": update})
            llm.finish_weight_update()
            seconds.append(time.perf_counter() - started)
            Path(result).write_text(json.dumps(seconds))


SIDES: dict[str, Callable[..., None]] = {"make": make, "bare": bare, "vllm": vllm, "vllm-sender": vllm_sender}

if __name__ == "__main__":
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    SIDES[sys.argv[1]](*sys.argv[2:])
