"""`make bench-lora-sync`: bytes and seconds of a weight update by adapter, and bytes of its checkpoint, beside those of
whole weights, on the CPU.

    python benchmarks/lora_sync.py [--rounds N] [--set KEY=VALUE]

A trainer and a rollout service of SmolLM2-135M's shape with random weights, trained as a whole, with LoRA of rank 8 on the
projections of its attention, and on all its linear layers. The weights change before each update.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import weight_sync_services as services
from report import conclude, note, rounded, run, spread
from weight_sync import Round, updates
from weight_sync_peers import make_model
from weight_sync_services import Place

from baton.weights import WeightPublisher

RANK, WARM_UP = 8, 2
MODEL = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
_LORA = (
    "models.ppo_policy.lora.enable_lora=true", f"models.ppo_policy.lora.lora_dim={RANK}",
    "models.ppo_policy.lora.lora_layer=ColumnParallelLinear,RowParallelLinear",
)  # fmt: skip
SIDES = {
    "whole": (),
    "adapter_of_attention": (*_LORA, "models.ppo_policy.lora.part_module_name=self_attn"),
    "adapter_of_all_linear": _LORA,
}
"""What the run file says besides."""


@dataclass(frozen=True, slots=True)
class Side:
    """What one kind of training sends and saves."""

    rounds: list[Round]
    checkpoint_bytes: int

    @property
    def update_bytes(self) -> int:
        """Of each update."""
        return self.rounds[0].publication.bytes

    @property
    def update_s(self) -> float:
        """Median seconds of an update."""
        return statistics.median(one.seconds for one in self.rounds)


async def measured(place: Place, name: str, model: Path, overrides: Sequence[str], rounds: int) -> Side:
    """One side; the updates that open the group, and bring the base, are left out."""
    run_file = services.run_file(place, name, model, [*SIDES[name], *overrides], {})
    vocabulary = MODEL["vocab_size"]
    async with AsyncExitStack() as stack:
        trainer = await stack.enter_async_context(services.trainer(place, run_file, vocabulary, learns=True))
        replica = await stack.enter_async_context(services.rollout(place, f"rollout-{name}", run_file))
        publisher = WeightPublisher(trainer.client, [replica])
        first = await updates(publisher, trainer, range(1, 1 + WARM_UP))
        note(f"{name}: {first[0].publication.base_bytes} bytes of a base, before the first")
        sent = await updates(publisher, trainer, range(1 + WARM_UP, 1 + WARM_UP + rounds))
        saved = await trainer.client.save_checkpoint(str(place.directory / f"checkpoint-{name}"))
        return Side(sent, saved.bytes)


def told(side: Side, whole: Side) -> dict[str, Any]:
    """Bytes, and seconds of a round from the call to the commit, of the transfer, and without service."""
    published = [one.publication for one in side.rounds]
    return {
        "bytes": side.update_bytes, "share_of_bytes": rounded(side.update_bytes / whole.update_bytes),
        "checkpoint_bytes": side.checkpoint_bytes,
        "share_of_checkpoint": rounded(side.checkpoint_bytes / whole.checkpoint_bytes),
        "update_s": spread([one.seconds for one in side.rounds]),
        "transfer_s": spread([one.transfer_s for one in published]),
        "load_s": spread([one.load_s for one in published]),
        "pause_s": spread([one.pause_s for one in published]),
    }  # fmt: skip


async def measure(options: argparse.Namespace) -> None:
    """All sides, one after the other, and the result."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), Path(folder), None)
        model = await make_model(place, "smollm2-shape", MODEL)
        found = {name: await measured(place, name, model, options.set, options.rounds) for name in SIDES}
    whole, attention = found["whole"], found["adapter_of_attention"]
    parts = {name: told(side, whole) for name, side in found.items()}
    for name in SIDES.keys() - {"whole"}:
        times = whole.update_s / found[name].update_s
        parts[f"{name}_times_faster"] = {"value": rounded(times), "goal": 1.0, "met": times > 1}
    value = max(attention.update_bytes / whole.update_bytes, attention.checkpoint_bytes / whole.checkpoint_bytes)
    conclude("lora_sync", value, "of whole weights' bytes, sent and saved", goal=0.01, at_least=False, parts=parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="updates that are counted, of each kind")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `baton run`")
    run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
