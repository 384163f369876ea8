"""Whole tensors under their Hugging Face names into this rank's parameters, as they arrive."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from baton.errors import InvalidRequestError
from services.trainer.megatron.model import PolicyModel
from services.trainer.megatron.names import NameMap, Rule
from services.trainer.megatron.parallel import Layout


@dataclass(slots=True)
class _Parameter:
    """One parameter, and those of its whole tensors that have come."""

    rule: Rule
    shard: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    filled: bool = False


class Intake:
    """One set of weights, in any order; tensors of other pipeline stages are let pass."""

    def __init__(self, policy: PolicyModel, layout: Layout) -> None:
        names = NameMap(policy.shape)
        embedding = names.rule("embedding.word_embeddings.weight", 0)  # a last stage's tied head is filled from it
        self._layout = layout
        self._parameters = [
            _Parameter(names.rule(name, policy.first_layer) or embedding, parameter)
            for name, parameter in policy.named_parameters()
        ]

    @torch.no_grad()
    def take(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Fills every parameter whose last tensor is among these; keeps views of the others until theirs come."""
        arrived = dict(tensors)
        for parameter in self._parameters:
            wanted = parameter.rule.hf_names
            parameter.parts |= {name: arrived[name] for name in wanted if name in arrived}
            if parameter.parts.keys() == set(wanted):
                whole = [parameter.parts[name] for name in wanted]
                parameter.shard.copy_(parameter.rule.split(whole, self._layout.tensor_rank, self._layout.tensor_size))
                parameter.parts, parameter.filled = {}, True

    def finish(self) -> None:
        """Raises InvalidRequestError if a parameter was not filled: it would still be of older weights."""
        missing = {name for parameter in self._parameters if not parameter.filled for name in parameter.rule.hf_names}
        if missing:
            raise InvalidRequestError(
                f"the update lacked {', '.join(sorted(missing)[:3])} ({len(missing)} tensors in all); "
                "trainer and rollout must run the same model"
            )
