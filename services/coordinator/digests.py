"""The check that every sample came from weights that were published: the same version, bit for bit."""

from collections.abc import Mapping

from baton.errors import DigestMismatchError
from baton.samples import Samples


def check_digests(samples: Samples, published: Mapping[int, str], replica: str) -> None:
    """Raises DigestMismatchError if a sample's weights are not those committed for its policy version.

    `published` maps versions to digests; `replica` is the rollout's address. The message says what either side holds.
    """
    digests = samples.weights_digests or [""] * len(samples)
    rows = zip(samples.sample_ids, samples.policy_version_max, digests, strict=True)
    for sample_id, version, held in rows:
        if published.get(int(version)) == held:
            continue
        if int(version) not in published:
            told = f"no version {version} was published; the newest is {max(published)}"
        else:
            told = f"the trainer published version {version} as {_name(published[int(version)])}"
        older = [other for other, digest in published.items() if digest == held]
        what = f"{_name(held)}, which is version {older[-1]}" if older else _name(held)
        raise DigestMismatchError(
            f"the rollout side is behind: replica {replica} sampled {sample_id} as version {version} from weights {what}, "
            f"but {told}; restart that replica and start the run again, which publishes whole weights first"
        )


def _name(digest: str) -> str:
    return digest or "(no digest)"
