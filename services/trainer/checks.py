"""What a batch of samples must be before a rank computes with it. A refusal names the column or the sample."""

from collections.abc import Mapping, Sequence

from baton.errors import DigestMismatchError, InvalidRequestError
from baton.samples import Samples

SCORED = ("prompt_ids", "response_ids")
"""The columns that a forward pass reads; what training needs besides is the objective's to say."""


def require(samples: Samples, columns: Sequence[str]) -> None:
    """Raises InvalidRequestError for a column that is absent."""
    for column in columns:
        if getattr(samples, column) is None:
            raise InvalidRequestError(f"the samples lack {column}; the flow must make it before they come to the trainer")


def check_lengths(samples: Samples, context: int) -> None:
    """Raises InvalidRequestError for an empty prompt, and for more tokens than the model's `context`."""
    prompts, totals = samples.prompt_ids.lengths, samples.token_counts()
    for sample_id, prompt, total in zip(samples.sample_ids, prompts, totals, strict=True):
        if prompt == 0:
            raise InvalidRequestError(f"sample {sample_id} has an empty prompt; give it at least one token")
        if total > context:
            raise InvalidRequestError(
                f"sample {sample_id} has {total} tokens, more than the model's context of {context}; "
                "lower models.policy.seq_length, or leave out given answers that are so long"
            )


def check_digests(samples: Samples, published: Mapping[int, str]) -> None:
    """Raises DigestMismatchError for a sample whose weights are not those published as its version. Empty: no check."""
    if not published:
        return
    require(samples, ("policy_version_max", "weights_digests"))
    rows = zip(samples.sample_ids, samples.policy_version_max, samples.weights_digests, strict=True)
    for sample_id, version, digest in rows:
        if (expected := published.get(int(version), "nothing")) != digest:
            raise DigestMismatchError(
                f"sample {sample_id} was sampled from weights {digest or '(none)'} as version {version}, but the trainer "
                f"published {expected} as that version; the rollout side is not serving what was published"
            )
