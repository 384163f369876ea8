"""What every rank of a static replica does for each command: from its bytes to this rank's part of the answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from baton.api.rollout.v1 import rollout_pb2 as pb
from services.common.devices import device_name
from services.static_rollout.draw import Sampling
from services.static_rollout.generator import StaticGenerator
from services.static_rollout.receiver import WeightReceiver
from services.static_rollout.rows import Response, Row
from services.trainer.ranks import Handler


class Worker:
    """One rank."""

    def __init__(self, generator: StaticGenerator) -> None:
        self._generator = generator
        self._receiver = WeightReceiver(generator.stage)

    def handlers(self) -> Mapping[str, Handler]:
        """The commands."""
        return {
            "Device": self._device,
            "Generate": self._generate,
            "UpdateWeights": self._update_weights,
            "LeaveGroup": self._leave_group,
        }

    def _device(self, _: bytes) -> bytes:
        return device_name(self._generator.stage.layout.device).encode()

    def _generate(self, request: bytes) -> bytes:
        rows = [Row(**row | {"sampling": Sampling(**row["sampling"])}) for row in json.loads(request)]
        return json.dumps([asdict(response) for response in self._generator.generate(rows)]).encode()

    def _update_weights(self, request: bytes) -> bytes:
        return json.dumps(self._receiver.update(pb.UpdateWeightsRequest.FromString(request))).encode()

    def _leave_group(self, _: bytes) -> bytes:
        self._receiver.leave()
        return b""


def encode_rows(rows: Sequence[Row]) -> bytes:
    """The request of `Generate`."""
    return json.dumps([asdict(row) for row in rows]).encode()


def decode_responses(parts: Sequence[bytes]) -> list[Response]:
    """The answer to `Generate` out of every rank's part: the sampler's is the only one that is not empty."""
    return [Response(**response) for part in parts for response in json.loads(part)]
