"""Whether those who want weights can take them: looked at before anything is opened, so that nobody is paused in vain."""

from collections.abc import Mapping
from pathlib import Path

from baton.api.trainer.v1 import trainer_pb2 as pb
from baton.errors import InvalidRequestError
from services.common.model_facts import directory_facts
from services.common.tokenizers import find_tokenizer


def own_facts(model: Path, tokenizer: str | Path, revision: str | None = None) -> dict[str, str]:
    """Those of the directory `model`; without `tokenizer`, of this revision, if there is none, which training does not
    need."""
    return directory_facts(model, find_tokenizer(tokenizer, revision))


def refused(own: Mapping[str, str], request: pb.OpenWeightGroupRequest) -> dict[str, str]:
    """All that differs in each replica whose facts are not `own`, by address; what one side does not know is not compared.
    Raises InvalidRequestError if the replicas have not as many devices as there are receivers."""
    devices = sum(len(replica.devices) for replica in request.replicas)
    if request.replicas and devices != request.receivers:
        raise InvalidRequestError(
            f"{request.receivers} receivers, but their replicas have {devices} devices; name one for each receiver"
        )
    return {
        replica.address: (
            f"rollout {replica.address} has another model than the trainer, and cannot take its weights: "
            f"{'; '.join(differences)}; start it with the model and tokenizer of models.ppo_policy"
        )
        for replica in request.replicas
        if (differences := _differences(own, replica.model_facts))
    }


def _differences(own: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    return [
        f"{name} is {theirs[name]} there and {value} here"
        for name, value in sorted(own.items())
        if theirs.get(name, value) != value
    ]
