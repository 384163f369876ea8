"""The receiving end of a weight update, inside vLLM's worker processes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

from baton.api.common.v1 import weights_pb2
from services.common.weight_sync.loading import Copies, DirectSink, LoaderSink
from services.common.weight_sync.plan import Region
from services.common.weight_sync.receiving import Compare, Reception
from services.common.weight_sync.transfer import Sink, leaving_if_broken
from services.rollout import vllm_adapters, vllm_sampler
from services.rollout.vllm_layout import LayoutRecord, keeps_what_it_loads
from services.rollout.vllm_reload import reloading

Feed = Callable[[Sink, Compare | None], dict[str, Any]]
"""Puts one whole set of weights into a sink, off the wire or out of memory, and returns a report of it."""


@dataclass
class GroupInfo(WeightTransferInitInfo):
    """Which group to join: a serialized WeightGroup, and the number of this replica's first receiver in it."""

    group: bytes
    first_rank: int
    timeout_s: float
    staged: bool
    """Whether all weights are kept before they are loaded."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """The plan was made when the group was joined; `load` numbers the sets of weights that this engine takes."""

    load: int
    timeout_s: float
    verify: bool


class WeightReceiver(WeightTransferEngine[GroupInfo, UpdateInfo]):
    """Receives every sender's parts into this worker's model: the first time, and whenever it must, by vLLM's loader."""

    init_info_cls = GroupInfo
    update_info_cls = UpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reception: Reception | None = None
        self._regions: list[Region] | None = None  # of the parameters, once they are known
        self._copies: Copies | None = None
        self._sink: DirectSink | None = None
        self.report: dict[str, Any] = {}

    @staticmethod
    def trainer_send_weights(*args: Any, **kwargs: Any) -> None:
        """Older vLLM asks every engine for the sending end too; ours is the trainer service."""
        raise NotImplementedError("weights are sent by the trainer service: TrainerService.PublishWeights")

    def init_transfer_engine(self, init_info: GroupInfo) -> None:
        """Joins every sender's group, while the senders do."""
        self.shutdown()
        group = weights_pb2.WeightGroup.FromString(init_info.group)
        number = init_info.first_rank + self.parallel_config.rank
        self._reception = Reception(group, number, self.device, init_info.timeout_s, staged=init_info.staged)

    def start_weight_update(self) -> None:
        """Nothing: whether layers must be prepared depends on how they are loaded."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Receives everything once, and keeps a report of it."""
        with self._in_group() as reception:
            feed = partial(reception.take, timeout_s=update_info.timeout_s)
            self.report = self._loaded(reception, feed, update_info.load, verify=update_info.verify)

    def stage(self, timeout_s: float, *, verify: bool) -> None:
        """Receives everything into memory of its own, in any thread, while the engine generates; see `load_staged`."""
        beside = torch.cuda.stream(torch.cuda.Stream(self.device)) if self.device.type == "cuda" else nullcontext()
        with self._in_group() as reception, beside:
            self.report = reception.stage(timeout_s, verify=verify)

    def load_staged(self, load: int, *, verify: bool) -> None:
        """Loads what was staged."""
        with self._in_group() as reception:
            self.report = self._loaded(reception, reception.load_staged, load, verify=verify)

    def load_adapter(self, manager: Any, load: int, multiplier: float) -> None:
        """Registers what was staged with vLLM's manager of adapters, beside those that it has."""
        with self._in_group() as reception:
            tensors: dict[str, torch.Tensor] = {}
            self.report = reception.load_staged(LoaderSink(tensors.update, reception.plans), None)
            begun = time.perf_counter()
            self.report["adapted"] = vllm_adapters.register(manager, load, tensors, multiplier)
            if self.device.type == "cuda":
                torch.cuda.current_stream().synchronize()
            self.report["seconds"]["load"] += time.perf_counter() - begun
            self.report["path"] = weights_pb2.LOAD_PATH_LOADER

    @contextmanager
    def _in_group(self) -> Iterator[Reception]:
        """Around what is done with a group: one that breaks is left, so that no other member waits for this one; one that
        does not is taken up again."""
        reception, self._reception = self._reception, None
        with leaving_if_broken(reception.groups):
            yield reception
        self._reception = reception

    def _loaded(self, reception: Reception, feed: Feed, load: int, *, verify: bool) -> dict[str, Any]:
        vllm_sampler.loaded(load)
        if self._plan_copies(reception):
            return feed(self._sink, self._known_copies if verify else None) | {"path": weights_pb2.LOAD_PATH_DIRECT}
        return self._by_loader(reception, feed, verify=verify) | {"path": weights_pb2.LOAD_PATH_LOADER}

    def _plan_copies(self, reception: Reception) -> bool:
        """Whether the layout of the parameters is known, so that parts can go straight there."""
        if self._sink is None and self._regions is not None:
            self._copies = Copies(reception.plans, self._regions)
            self._sink = DirectSink(self._copies, reception.lanes, self.device)
        return self._sink is not None

    def _by_loader(self, reception: Reception, feed: Feed, *, verify: bool) -> dict[str, Any]:
        """By vLLM's loader, watched if there is something to be learnt for the next time."""
        with vllm_adapters.base_alone(self.model):
            return self._whole_by_loader(reception, feed, verify=verify)

    def _whole_by_loader(self, reception: Reception, feed: Feed, *, verify: bool) -> dict[str, Any]:
        if not keeps_what_it_loads(self.model):
            with reloading(self.model, self.model_config):
                return feed(LoaderSink(self.model.load_weights, reception.plans), self._known_copies if verify else None)
        record = LayoutRecord(self.model)

        def load(tensors: list[tuple[str, torch.Tensor]]) -> None:
            with record.watching(tensors):
                self.model.load_weights(tensors)

        def learnt() -> Copies | None:
            self._regions = record.regions()
            return self._copies if self._plan_copies(reception) else None

        report = feed(LoaderSink(load, reception.plans), learnt if verify else None)
        learnt()
        torch.cuda.empty_cache()  # of the whole tensors that were put together for vLLM
        return report

    def _known_copies(self) -> Copies | None:
        return self._copies

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class does, which would synchronise an accelerator that a CPU worker lacks; `receive_weights` waits
        for the device itself."""
        self.receive_weights(self.parse_update_info(update_info))

    def finish_weight_update(self) -> None:
        """Nothing is left to be done."""

    def shutdown(self) -> None:
        """Leaves the groups."""
        self._reception = self._copies = self._sink = None
