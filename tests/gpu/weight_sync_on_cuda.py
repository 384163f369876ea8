"""Run by test_weight_sync_on_cuda.py, or by hand: one update from this process to receivers of its own making, on one GPU
(CUDA IPC) and, if there is a second one, over NCCL. Prints JSON: what each receiver saw, and digests by both devices."""

import itertools
import json
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection

import torch

from baton.api.common.v1 import weights_pb2
from services.common.weight_sync.digest import WeightsDigest
from services.common.weight_sync.group import BroadcastGroup, open_store
from services.common.weight_sync.loading import Copies, DirectSink
from services.common.weight_sync.plan import Part, Region, as_matrix, cut, describe, plan_buckets
from services.common.weight_sync.receiving import Reception
from services.common.weight_sync.shared_memory import share
from services.common.weight_sync.transfer import BroadcastWire, Deadline, Gathering, Lane, NoWire, send

BUCKET_BYTES = 8 << 20
TIMEOUT_S = 60.0
SHAPES = {"a.weight": (3000, 1024), "b.weight": (77, 513), "c.bias": (1025,), "d.weight": (5000, 2048)}
DTYPE = torch.bfloat16


def tensors(seed: int, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    random = torch.Generator(device="cpu").manual_seed(seed)
    return {name: torch.randn(shape, generator=random).to(device, dtype) for name, shape in SHAPES.items()}


def halves(whole: dict[str, torch.Tensor]) -> list[Region]:
    """All of it; matrices as their left and their right halves, so that columns are cut too."""
    regions = []
    for name, tensor in whole.items():
        matrix, shape = as_matrix(tensor), tuple(tensor.shape)
        edges = (0, matrix.shape[1] // 2, matrix.shape[1])
        for columns in itertools.pairwise(edges):
            part = Part(name, DTYPE, shape, (0, matrix.shape[0]), columns)
            regions.append(Region(part, matrix[:, columns[0] : columns[1]]))
    return regions


def receiver(group: bytes, device: str, connection: Connection) -> None:
    """Takes three updates, the last one compared, and answers with what it has then. The later ones are graphs'."""
    own = torch.device(device)
    torch.cuda.set_device(own)
    reception = Reception(weights_pb2.WeightGroup.FromString(group), 1, own, TIMEOUT_S)
    held = {name: torch.zeros(shape, dtype=DTYPE, device=own) for name, shape in SHAPES.items()}
    regions = [Region(Part.whole(name, DTYPE, tensor.shape), as_matrix(tensor)) for name, tensor in held.items()]
    copies = Copies(reception.plans, regions)
    sink = DirectSink(copies, reception.lanes, own)
    for compare in (None, None, lambda: copies):
        connection.recv()  # the weights are there, which a coordinator waits for before it publishes
        report = reception.take(sink, compare, TIMEOUT_S)
        digest = WeightsDigest()
        for name, tensor in held.items():
            digest.add_tensor(name, tensor.cpu())
        connection.send(report | {"held": digest.hexdigest()})
    connection.recv()  # the sender's memory must outlive the last update


def publish(transport: str, dtype: torch.dtype) -> dict:
    source = torch.device("cuda", 0)
    torch.cuda.set_device(source)
    held = tensors(1, source, dtype)
    regions = list(cut(halves(held), BUCKET_BYTES))
    store = open_store("127.0.0.1")
    group = weights_pb2.WeightGroup(group_id=transport, backend="nccl", receivers=1)
    sender = group.senders.add(store_host="127.0.0.1", store_port=store.port, bucket_bytes=BUCKET_BYTES)
    describe([region.part for region in regions], sender)
    if transport == "ipc":
        share(regions, sender)
    else:
        sender.members.append(1)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    target = "cuda:0" if transport == "ipc" else "cuda:1"
    process = context.Process(target=receiver, args=(group.SerializeToString(), target, theirs), daemon=True)
    process.start()
    theirs.close()
    wire = NoWire()
    if transport == "nccl":
        joined = BroadcastGroup(store, "127.0.0.1", rank=0, size=2, backend="nccl", group_id="nccl", timeout_s=TIMEOUT_S)
        wire = BroadcastWire(joined, "nccl")
    lane = Lane(plan_buckets([region.part for region in regions], BUCKET_BYTES), wire, source)
    gathering = Gathering(lane, regions, source)
    answers = []
    for update in range(3):
        for name, tensor in tensors(update, source, dtype).items():
            held[name].copy_(tensor)
        torch.cuda.synchronize()
        ours.send(None)
        started = time.perf_counter()
        for _ in range(1 + (update == 2)):
            sent = send(gathering, Deadline(TIMEOUT_S))
        expected = WeightsDigest()
        for name, tensor in held.items():
            expected.add_tensor(name, tensor.to(DTYPE).cpu())
        answer = ours.recv()
        answers.append(
            answer | {"sent": sent.digest.hexdigest(), "expected": expected.hexdigest(), "s": time.perf_counter() - started}
        )
    ours.send(None)
    process.join(TIMEOUT_S)
    return {"transport": transport, "dtype": str(dtype), "updates": answers}


if __name__ == "__main__":
    cases = [("ipc", torch.bfloat16), ("ipc", torch.float32)]
    if torch.cuda.device_count() > 1:
        cases += [("nccl", torch.bfloat16), ("nccl", torch.float32)]
    for case in cases:
        print(json.dumps(publish(*case)))
        sys.stdout.flush()
