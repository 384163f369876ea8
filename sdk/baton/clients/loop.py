"""Client of the trainer's low-level verbs, for a training loop of your own."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from baton.api.trainer.v1 import loop_pb2 as pb
from baton.api.trainer.v1.loop_pb2_grpc import LoopServiceStub
from baton.channel import ServiceClient
from baton.samples import Ragged, Samples


@dataclass(frozen=True, slots=True)
class Accumulated:
    """What one forward_backward did. `scores`, if asked for: one row per sample."""

    metrics: dict[str, float]
    response_tokens: int
    computed_tokens: int
    scores: Ragged | None = None


class LoopClient(ServiceClient):
    """Accumulates gradients and updates weights when the caller says so. Errors: see `baton.errors`."""

    SERVICE = "baton.api.trainer.v1.LoopService"
    STUB = LoopServiceStub
    RETRIED = ("OptimStep",)

    async def forward_backward(
        self, samples: Samples, *, loss: Mapping[str, Any] | None = None, role: str = "", scale: float = 1.0,
        micro_batch_size: int = 0, want_scores: bool = False, request_id: str | None = None, timeout_s: float = 1800.0,
    ) -> Accumulated:  # fmt: skip
        """Adds the gradient of one loss on all samples to the role's gradients.

        `loss` is an `algorithm` section of the run file, as {"name": "grpo"}; None: the run's own. It is normalised over
        these samples: over several calls for one update, `scale` is each call's share. `scores`: what the loss was computed
        from. A call that is repeated with the same `request_id` adds nothing. Raises ServiceFaultError if a rank failed in
        the midst of it: the role's gradients since its last update are gone then, and that update is to be begun anew.
        """
        spec = pb.LossSpec(
            algorithm="" if loss is None else json.dumps(dict(loss)), scale=scale, micro_batch_size=micro_batch_size
        )
        first = {"request_id": request_id or uuid.uuid4().hex, "role": role, "loss": spec, "want_scores": want_scores}
        requests = [
            pb.ForwardBackwardRequest(samples=part.to_proto(), **(first if index == 0 else {}))
            for index, part in enumerate(samples.split())
        ]
        answers = [answer async for answer in self._stream("ForwardBackward", requests, timeout_s)]
        head = answers[0]
        values = np.frombuffer(b"".join(answer.scores.values for answer in answers), "<f4")
        lengths = np.frombuffer(b"".join(answer.scores.lengths for answer in answers), "<u4")
        scores = Ragged(values, lengths) if want_scores else None
        return Accumulated(dict(head.metrics), head.response_tokens, head.computed_tokens, scores)

    async def optim_step(
        self, *, role: str = "", learning_rate: float | None = None, weight_decay: float | None = None,
        request_id: str | None = None, timeout_s: float = 600.0,
    ) -> pb.OptimStepResponse:  # fmt: skip
        """Updates the role's weights with the accumulated gradients; None keeps what the run file says."""
        request = pb.OptimStepRequest(
            request_id=request_id or uuid.uuid4().hex, role=role, learning_rate=learning_rate, weight_decay=weight_decay
        )
        return await self._call("OptimStep", request, timeout_s)
