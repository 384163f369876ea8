"""What a batch of samples must be before a rank computes with it. A refusal names the column or the sample."""

from collections.abc import Mapping, Sequence

import numpy as np

from baton.errors import DigestMismatchError, InvalidRequestError
from baton.samples import Samples
from services.trainer.megatron.family import ModelShape

SCORED = ("prompt_ids", "response_ids")
"""The columns that a forward pass reads; what training needs besides is the objective's to say."""


def require(samples: Samples, columns: Sequence[str]) -> None:
    """Raises InvalidRequestError for a column that is absent."""
    for column in columns:
        if getattr(samples, column) is None:
            raise InvalidRequestError(f"the samples lack {column}; the flow must make it before they come to the trainer")


def check_fits(samples: Samples, shape: ModelShape) -> None:
    """Raises InvalidRequestError for an empty prompt, for more tokens than the model's context, and for a token that it does
    not have, which some ranks would read as nothing and others could not read at all."""
    prompts, totals = samples.prompt_ids.lengths, samples.token_counts()
    for sample_id, prompt, total in zip(samples.sample_ids, prompts, totals, strict=True):
        if prompt == 0:
            raise InvalidRequestError(f"sample {sample_id} has an empty prompt; give it at least one token")
        if total > shape.max_positions:
            raise InvalidRequestError(
                f"sample {sample_id} has {total} tokens, more than the model's context of {shape.max_positions}; "
                "lower models.policy.seq_length, or leave out given answers that are so long"
            )
    for column in (samples.prompt_ids, samples.response_ids):
        if (unknown := (column.values < 0) | (column.values >= shape.vocab_size)).any():
            at = int(np.argmax(unknown))
            sample_id = samples.sample_ids[int(np.searchsorted(column.lengths.cumsum(), at, side="right"))]
            raise InvalidRequestError(
                f"sample {sample_id} has the token {column.values[at]}, and the model has tokens 0 to "
                f"{shape.vocab_size - 1}; make samples by the model's own tokenizer"
            )


def check_digests(samples: Samples, published: Mapping[int, str]) -> None:
    """Raises DigestMismatchError for a sample whose weights are not those published as its version."""
    require(samples, ("policy_version_max", "weights_digests"))
    rows = zip(samples.sample_ids, samples.policy_version_max, samples.weights_digests, strict=True)
    for sample_id, version, digest in rows:
        if (expected := published.get(int(version), "nothing")) != digest:
            raise DigestMismatchError(
                f"sample {sample_id} was sampled from weights {digest or '(none)'} as version {version}, but the trainer "
                f"published {expected} as that version; the rollout side is not serving what was published"
            )
