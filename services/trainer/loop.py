"""The verbs of a training loop of a program's own: what every rank does for each, from request to its part of the answer.

Every rank gets the whole batch, so that all of them refuse it or none does; the data-parallel ranks share its micro-batches.
"""

import json
import math
from collections import Counter

import numpy as np
from pydantic import TypeAdapter, ValidationError

from baton.api.trainer.v1 import loop_pb2 as pb
from baton.clients.buffer import MicroBatch
from baton.config import RunConfig
from baton.config.algorithm import AlgorithmConfig
from baton.config.algorithm_rules import algorithm_problems
from baton.errors import InvalidRequestError, NotReadyError
from baton.samples import Samples
from services.trainer.checks import check_fits
from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.heads import Head
from services.trainer.objectives import Objective, objective_for
from services.trainer.ranks import Handler
from services.trainer.scoring import answer_of
from services.trainer.step import backward, prepare
from services.trainer.trainer import Trainer

_ALGORITHM = TypeAdapter(AlgorithmConfig)


class Loop:
    """One rank's loop commands. They share the trainer's models, objective and step counter."""

    def __init__(self, run: RunConfig, trainer: Trainer) -> None:
        self._run = run
        self._trainer = trainer
        self._totals: Counter[str] = Counter()
        """Of the plans behind the policy's accumulated gradient, for the objective."""

    def handlers(self) -> dict[str, Handler]:
        """The commands, for `Ranks`."""
        return {
            "ForwardBackward": lambda raw: self._forward_backward(pb.ForwardBackwardRequest.FromString(raw)),
            "OptimStep": lambda raw: self._optim_step(pb.OptimStepRequest.FromString(raw)).SerializeToString(),
            "ClearGradients": lambda raw: self._clear(raw.decode()),
        }

    def _forward_backward(self, request: pb.ForwardBackwardRequest) -> bytes:
        """This rank's part: a response whose scores are a part for `joined`."""
        engine = self._trainer.models.engine(request.role)
        config = self._config(request.loss)
        _check_head(config.name, engine.head, request.role or "ppo_policy")
        scale = _scale(request.loss)
        objective = self._trainer.objective if config is self._run.algorithm else objective_for(config)
        batches = self._checked(Samples.from_proto(request.samples), objective, request, engine.shape)
        layout = engine.layout
        bounds = [-(-len(batches) * rank // layout.data_size) for rank in (layout.data_rank, layout.data_rank + 1)]
        prepared = prepare(objective, engine, batches[slice(*bounds)], tail="wrap")
        loss = prepared.plan.loss if engine.head != "values" else prepared.plan.value_loss
        if engine is self._trainer.models.policy and not engine.has_gradients:
            self._totals.clear()  # of gradients that are no more
        found = backward(engine, prepared.rows, loss, scale)
        if objective is self._trainer.objective and engine is self._trainer.models.policy:
            self._totals.update(prepared.plan.totals)
        metrics = found.sums | (dict(prepared.plan.metrics) if found.sums and layout.data_rank == 0 else {})
        response = pb.ForwardBackwardResponse(
            metrics=metrics, response_tokens=prepared.counted.response_tokens,
            computed_tokens=prepared.counted.computed_tokens,
        )  # fmt: skip
        if request.want_scores:
            response.scores.values = answer_of(layout, found.outputs)
        return response.SerializeToString()

    def _clear(self, role: str) -> bytes:
        engine = self._trainer.models.engine(role)
        engine.clear()
        if engine is self._trainer.models.policy:
            self._totals.clear()
        return b""

    def _checked(
        self, samples: Samples, objective: Objective, request: pb.ForwardBackwardRequest, shape: ModelShape
    ) -> list[MicroBatch]:
        """The whole batch in micro-batches. Raises InvalidRequestError for one that cannot be trained."""
        size = request.loss.micro_batch_size or self._run.runtime.train_micro_batch_size
        parts = [samples.take(range(first, min(first + size, len(samples)))) for first in range(0, len(samples), size)]
        for part in parts:
            objective.check(part)
            check_fits(part, shape)
        return [MicroBatch("", part, np.zeros(len(part), bool)) for part in parts]

    def _config(self, loss: pb.LossSpec) -> AlgorithmConfig:
        """The run's own, whose objective has a state that lasts, or one for this call alone."""
        if not loss.algorithm:
            return self._run.algorithm
        try:
            algorithm = _ALGORITHM.validate_python(json.loads(loss.algorithm))
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise InvalidRequestError(f"loss: {found}; write it like the run file's `algorithm` section") from None
        except json.JSONDecodeError as error:
            raise InvalidRequestError(f"loss.algorithm is no JSON ({error}); send an `algorithm` section as JSON") from None
        if problems := list(algorithm_problems(algorithm)):
            raise InvalidRequestError("loss: " + "\n".join(problems))
        return algorithm

    def _optim_step(self, request: pb.OptimStepRequest) -> pb.OptimStepResponse:
        engine = self._trainer.models.engine(request.role)
        if not engine.has_gradients:
            raise NotReadyError("no gradient is accumulated; call ForwardBackward before OptimStep")
        update = engine.step(_own(request, "learning_rate"), _own(request, "weight_decay"))
        if engine is self._trainer.models.trained.get("ppo_policy"):
            self._trainer.global_step += 1
            if self._totals and not update.skipped:
                self._trainer.objective.advance(self._totals)
            self._totals.clear()
        return pb.OptimStepResponse(
            global_step=self._trainer.global_step, grad_norm=update.grad_norm, learning_rate=update.learning_rate,
            skipped=update.skipped,
        )  # fmt: skip


def _own(request: pb.OptimStepRequest, name: str) -> float | None:
    """The request's own value, or None. Raises InvalidRequestError for one that would spoil the weights."""
    if not request.HasField(name):
        return None
    value = getattr(request, name)
    if not (math.isfinite(value) and value >= 0):
        raise InvalidRequestError(f"{name} is {value}; send a finite number of at least 0, or none for the run file's")
    return value


def _scale(loss: pb.LossSpec) -> float:
    """The factor of the loss. Raises InvalidRequestError for one that is no number."""
    scale = loss.scale if loss.HasField("scale") else 1.0
    if not math.isfinite(scale):
        raise InvalidRequestError(f"the loss has the scale {scale}; send this call's share of the update, as 0.5")
    return scale


def _check_head(algorithm: str, head: Head, role: str) -> None:
    """Raises InvalidRequestError if the algorithm has no loss of what the role's model makes."""
    losses = {"ppo": ("logprobs", "values"), "reward_model": ("scores",)}.get(algorithm, ("logprobs",))
    if head not in losses:
        raise InvalidRequestError(f"models.{role} makes {head}, and {algorithm} has a loss of {' and '.join(losses)} only")
