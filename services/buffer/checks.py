"""What samples must be before they are stored."""

import numpy as np

from baton.errors import InvalidRequestError
from baton.samples import RewardStatus, Samples


def check(samples: Samples) -> None:
    """Raises InvalidRequestError for samples that could only be trained wrongly."""
    versions, rewards, status = samples.policy_version_max, samples.rewards, samples.reward_status
    if versions is None or (versions < 0).any():
        which = "samples" if versions is None else f"sample {samples.sample_ids[int(np.argmax(versions < 0))]}"
        raise InvalidRequestError(
            f"{which}: no policy version; fill policy_version_max with that of the weights sampled from"
        )
    if rewards is None:
        return
    scored = np.ones(len(samples), bool) if status is None else status == RewardStatus.VALUE
    if (bad := scored & ~np.isfinite(rewards)).any():
        at = int(np.argmax(bad))
        raise InvalidRequestError(
            f"sample {samples.sample_ids[at]}: reward {rewards[at]}, but its status says that it is a value; "
            "set reward_status to ABSTAIN or ERROR where there is none"
        )
