"""`make bench-weight-sync`: seconds of a weight update, beside a bare broadcast of the same bytes and vLLM's own engine.

    python benchmarks/weight_sync.py [--sizes 0.6b,8b] [--one-card | --cpu] [--out DIRECTORY] [--set KEY=VALUE]

The trainer service is on one GPU, the rollout service on another; by `--one-card` on the same, by `--cpu` on the CPU, where
tiny models show that all of it works. The weights change before each update. Afterwards greedy answers are to be those of a
fresh engine that has loaded what the trainer exports.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import weight_sync_services as services
from report import conclude, note, rounded, run, spread
from weight_sync_peers import bare_broadcasts, make_model, vllm_updates
from weight_sync_services import Place, Trainer

from baton.clients import RolloutClient
from baton.clients.rollout_control import InFlight
from baton.errors import ServiceFaultError
from baton.local.devices import machine_gpus
from baton.weights import Publication, WeightPublisher

ROUNDS, WARM_UP, BUSY_ROUNDS = 10, 2, 5
SETTLING = 3
"""Steps after which a trainer takes no more memory for itself."""
PARTS = ("busy", "fresh", "vllm")
"""What `--parts` chooses from, besides updates of an engine that generates nothing: updates while it generates, answers of a
fresh engine, and vLLM's own updates."""
_COMMON = {"max_position_embeddings": 40960, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
_TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "vocab_size": 512, "max_position_embeddings": 1024,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """A model's shape, whether the optimizer fits a card beside it, and the goals: limits on what `results` holds."""

    shape: dict[str, Any]
    learns: bool
    two_cards: dict[str, float] = field(default_factory=dict)
    one_card: dict[str, float] = field(default_factory=dict)


SIZES = {
    "0.6b": Size(
        _COMMON | {
            "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
            "tie_word_embeddings": True,
        },
        learns=True, one_card={"update_s": 0.015},
        two_cards={"update_s": 0.012, "pause_s": 0.012, "times_faster_than_vllm": 5.0},
    ),
    "8b": Size(
        _COMMON | {
            "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
            "tie_word_embeddings": False,
        },
        learns=False, two_cards={"update_over_bare": 1.35, "pause_over_bare": 1.35, "times_faster_than_vllm": 1.7},
    ),
    "tiny": Size(_TINY | {"tie_word_embeddings": True}, learns=True),
    "tiny-untied": Size(_TINY | {"tie_word_embeddings": False}, learns=False),
}  # fmt: skip


@dataclass(slots=True)
class Round:
    """One update: its seconds from the call to the commit, what the publisher says of it, and a bare broadcast's seconds."""

    seconds: float
    publication: Publication
    bare_s: float | None = None


async def updates(
    publisher: WeightPublisher, trainer: Trainer, versions: range, *, in_flight: InFlight = "abort",
    bare: Callable[[], Awaitable[float]] | None = None,
) -> list[Round]:  # fmt: skip
    """Publishes versions one after another, each of other weights, and in turn with them does the bare broadcasts."""
    rounds: list[Round] = []
    for version in versions:
        await trainer.change()
        started = time.perf_counter()
        publication = await publisher.publish(version, in_flight=in_flight, timeout_s=services.TURN_S)
        rounds.append(Round(time.perf_counter() - started, publication))
        if bare is not None:
            rounds[-1].bare_s = await bare()
        bare_ms = rounds[-1].bare_s and round(rounds[-1].bare_s * 1e3, 2)
        note(f"version {version}: {rounds[-1].seconds * 1e3:.2f} ms, pause {publication.pause_s * 1e3:.2f}, bare {bare_ms}")
    if len({one.publication.weights_digest for one in rounds}) != len(rounds):
        raise ServiceFaultError("two updates had the same weights; the trainer's step changes nothing")
    return rounds


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Medians and ranges; phases are seconds, of the slowest participant."""
    first, seconds = rounds[0].publication, [one.seconds for one in rounds]
    phases = {one.name: [getattr(each.publication, one.name) for each in rounds] for one in fields(first)}
    phases = {name: rounded(statistics.median(values)) for name, values in phases.items() if name.endswith("_s")}
    answer = {
        "update_s": spread(seconds), "pause_s": spread([one.publication.pause_s for one in rounds]), "phases_s": phases,
        "bytes": first.bytes, "gb_per_s": rounded(first.bytes / statistics.median(seconds) / 1e9), "rounds": len(rounds),
        "transports": first.transports, "direct": all(one.publication.direct for one in rounds),
    }  # fmt: skip
    if rounds[0].bare_s is not None:
        answer |= {
            "bare_s": spread([one.bare_s for one in rounds]),
            "bare_gb_per_s": rounded(first.bytes / statistics.median(one.bare_s for one in rounds) / 1e9),
            "update_over_bare": spread([one.seconds / one.bare_s for one in rounds]),
            "pause_over_bare": spread([one.publication.pause_s / one.bare_s for one in rounds]),
        }
    return answer


def card_memory(card: str) -> int:
    """Bytes of a card's memory that are in use."""
    command = ["nvidia-smi", "-i", card, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout) << 20


class Measurement:
    """All parts of one size. What is known is in `results` as soon as it is, and in the file `out`."""

    def __init__(self, name: str, place: Place, options: argparse.Namespace) -> None:
        self.size, self.results = SIZES[name], {}
        self._name, self._place, self._options = name, place, options

    async def measure(self) -> None:
        """Our updates with the bare broadcasts, then vLLM's. A part that fails does not stop the next."""
        if (model := await self._part("model", make_model(self._place, self._name, self.size.shape))) is None:
            return
        await self._part("baton", self._ours(model))
        if "vllm" in self._options.parts and self._place.cards and not self._options.one_card:
            await self._part("vllm", self._vllm(model))
        self._judge()

    async def _part(self, name: str, work: Awaitable[Any]) -> Any:
        try:
            return await work
        except Exception as error:
            traceback.print_exc()
            self._keep(**{f"{name}_failed": f"{type(error).__name__}: {error}"})
            return None

    def _keep(self, **found: Any) -> None:
        self.results |= found
        (self._options.out / f"weight-sync-{self._name}.json").write_text(json.dumps(self.results, indent=1))
        note(f"{self._name}: {json.dumps(found)}")

    async def _ours(self, model: Path) -> None:
        place, vocabulary = self._place, self.size.shape["vocab_size"]
        file = services.run_file(place, self._name, model, self._options.set, {"vllm_load_format": "dummy"})
        async with AsyncExitStack() as stack:
            rollout_stack = await stack.enter_async_context(AsyncExitStack())
            starts = [
                stack.enter_async_context(services.trainer(place, file, vocabulary, learns=self.size.learns)),
                rollout_stack.enter_async_context(services.rollout(place, f"rollout-{self._name}", file)),
            ]
            trainer, rollout = await services.all_of(starts, one_by_one=self._options.one_card)
            publisher = WeightPublisher(trainer.client, [rollout])
            await self._idle(publisher, trainer)
            first = await services.answers(rollout, vocabulary)
            if "busy" in self._options.parts:
                await self._part("busy", self._busy(publisher, trainer, rollout))
            if "fresh" in self._options.parts:
                await trainer.change()
                await publisher.publish(WARM_UP + ROUNDS + BUSY_ROUNDS + 1)
                served = await services.answers(rollout, vocabulary)
                await rollout_stack.aclose()  # its card is the fresh one's
                self._keep(changed_answers=served != first)
                await self._part("fresh", self._fresh(trainer, served))

    async def _busy(self, publisher: WeightPublisher, trainer: Trainer, rollout: RolloutClient) -> None:
        """Updates while 32 responses are generated, which go on with the new weights."""
        async with services.generating(rollout, self.size.shape["vocab_size"]):
            versions = range(WARM_UP + ROUNDS + 1, WARM_UP + ROUNDS + BUSY_ROUNDS + 1)
            self._keep(while_generating=summary(await updates(publisher, trainer, versions, in_flight="keep")))

    async def _idle(self, publisher: WeightPublisher, trainer: Trainer) -> None:
        """Updates of an engine that generates nothing; on one card also what they leave in its memory."""
        place, card = self._place, self._place.cards and self._place.cards[0]
        for _ in range(SETTLING):
            await trainer.change()
        before = card_memory(card) if card and self._options.one_card else None
        warm = await updates(publisher, trainer, range(1, WARM_UP + 1))
        versions = range(WARM_UP + 1, WARM_UP + ROUNDS + 1)
        async with AsyncExitStack() as stack:
            bare = None
            if not self._options.one_card:
                bare = await stack.enter_async_context(bare_broadcasts(place, warm[0].publication.bytes))
            rounds = await updates(publisher, trainer, versions, bare=bare)
        first = {"seconds": rounded(warm[0].seconds), "verified_bytes": warm[0].publication.verified_bytes}
        self._keep(first_update=first, **summary(rounds))
        if before is not None:
            after = card_memory(card)
            self._keep(card_gib={"before": rounded(before / 2**30), "after": rounded(after / 2**30)})
            self._keep(kept_share_of_model=rounded((after - before) / rounds[0].publication.bytes))

    async def _fresh(self, trainer: Trainer, served: list[list[int]]) -> None:
        """Whether an engine that loads what the trainer exports gives the same answers."""
        place, name = self._place, f"fresh-{self._name}"
        export = place.directory / f"export-{self._name}"
        await trainer.client.export_model(str(export))
        file = services.run_file(place, name, export, self._options.set, {})
        async with services.rollout(place, name, file) as fresh:
            expected = await services.answers(fresh, self.size.shape["vocab_size"])
        self._keep(same_answers=served == expected, answer_tokens=sum(map(len, served)))

    async def _vllm(self, model: Path) -> None:
        seconds = (await vllm_updates(self._place, model, WARM_UP + ROUNDS))[WARM_UP:]
        self._keep(vllm_update_s=spread(seconds))
        if "update_s" in self.results:
            ratio = statistics.median(seconds) / self.results["update_s"]["median"]
            self._keep(times_faster_than_vllm=rounded(ratio))

    def _judge(self) -> None:
        """`met`: whether every goal is, and the answers are as they should be; what was not measured is not met."""
        goals = self.size.one_card if self._options.one_card else self.size.two_cards
        if self._options.one_card:
            goals = goals | {"kept_share_of_model": 0.5}
        met = {name: self.results.get(name, False) for name in ("same_answers", "changed_answers")}
        for name, goal in goals.items():
            found = self.results.get(name)
            value = found["median"] if isinstance(found, Mapping) else found
            met[name] = value is not None and (value >= goal if name.startswith("times_faster") else value <= goal)
        self._keep(goals=goals, goals_met=met, met=all(met.values()))


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Results by size."""
    cards = None if options.cpu else machine_gpus()[: 1 if options.one_card else 2]
    if cards is not None and len(cards) < (1 if options.one_card else 2):
        raise ServiceFaultError(f"this machine has GPUs {cards or 'none'}; pass --one-card, or --cpu for tiny models")
    parts: dict[str, Any] = {}
    for name in options.sizes.split(","):
        with tempfile.TemporaryDirectory(prefix="bench-weight-sync-") as directory:
            place = Place(Path(directory), options.out / "logs" / name, cards and (cards[0], cards[-1]))
            measurement = Measurement(name, place, options)
            try:
                await measurement.measure()
            finally:
                parts[name] = measurement.results
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", help=f"some of {','.join(SIZES)}; default 0.6b,8b, and tiny,tiny-untied on the CPU")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--one-card", action="store_true", help="trainer and rollout share one GPU")
    where.add_argument("--cpu", action="store_true", help="tiny models on this machine's CPU")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=PARTS, help=f"default {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "bench-weight-sync")))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the run file")
    options = parser.parse_args()
    options.sizes = options.sizes or ("tiny,tiny-untied" if options.cpu else "0.6b" if options.one_card else "0.6b,8b")
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    parts = run(measure(options))
    last = parts[options.sizes.split(",")[-1]]
    if options.cpu:
        conclude("weight-sync-cpu", float(last.get("same_answers", False)), "answers as a fresh engine's", goal=1.0,
                 at_least=True, parts=parts)  # fmt: skip
    elif options.one_card:
        value = last["update_s"]["median"] if "update_s" in last else 3600.0
        conclude("weight-sync-one-card", value, "s", goal=0.015, at_least=False, parts=parts)
    else:
        value = last["update_over_bare"]["median"] if "update_over_bare" in last else 3600.0
        conclude("weight-sync", value, "of a bare broadcast's time", goal=1.35, at_least=False, parts=parts)


if __name__ == "__main__":
    main()
