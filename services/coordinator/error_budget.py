"""How many of an episode's rewards may fail before the run ends: an episode without rewards teaches nothing, and the next
one would fare no better."""

import numpy as np

from baton.errors import RunFailedError
from baton.flow import Group
from baton.samples import RewardStatus


class ErrorBudget:
    """Counts, by `rewards.max_error_rate`, the calls of reward functions and the reward model's scores, and the samples that
    a flow left without a reward by an error."""

    def __init__(self, max_error_rate: float) -> None:
        self._max_error_rate = max_error_rate
        self.begin(0, 0)

    def begin(self, samples: int, sources: int) -> None:
        """Counts anew: an episode is to have so many samples, and each so many rewards: of functions, and of the model."""
        self._planned = samples * max(sources, 1)
        self._calls = self._failed_calls = self._samples = self._failed_samples = 0
        self._first = ""

    def count(self, failure: str = "") -> None:
        """Takes a call or a score, and why it gave no value. Raises RunFailedError, with the first cause, once too many
        failed."""
        self._calls += 1
        if failure:
            self._failed_calls += 1
            self._first = self._first or failure
            self._check(self._failed_calls)

    def count_group(self, group: Group) -> None:
        """Takes a group as it goes to the buffer: a flow may have put in rewards of its own. Raises as `count`."""
        failed_G = np.isin(group.samples.reward_status, (RewardStatus.ERROR, RewardStatus.TIMEOUT))
        self._samples += len(group.samples)
        if failed_G.any():
            self._failed_samples += int(failed_G.sum())
            first = group.samples.sample_ids[int(failed_G.argmax())]
            self._first = self._first or f"the flow gave sample {first} a reward that is no finite number"
            self._check(self._failed_samples)

    def _check(self, failed: int) -> None:
        total = max(self._calls, self._planned, self._samples)
        if failed > self._max_error_rate * total:
            raise RunFailedError(
                f"{self._first}\n{failed} of the episode's {total} rewards failed, more than "
                f"rewards.max_error_rate ({self._max_error_rate:g}) allows; correct what gives them, let it give None where "
                "it cannot judge, or raise rewards.max_error_rate"
            )
