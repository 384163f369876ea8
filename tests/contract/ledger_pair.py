"""One run of the real service beside one of the model: every method calls both, and asserts that they answer the same."""

import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import redis
from ledger_model import BATCH, MICRO
from lossy_link import LossyLink
from whole_ledger_model import GROUP, GROUPS, Model

from baton.clients import BufferClient, LedgerClient, RelayClient, blocking
from baton.errors import BatonError
from baton.samples import Samples

LOST_ANSWERS = 60
"""In all, at most: a client asks again after a fifth of a second."""


def samples_of(at: int, group: int) -> Samples:
    numbers = [GROUP * group + place for place in range(GROUP)]
    return Samples(
        sample_ids=[f"e{at}s{number}" for number in numbers],
        group_ids=[f"g{group}"] * GROUP,
        policy_version_max=np.asarray(numbers),
    )


def made_for(at: int, count: int) -> Samples:
    """As a relay function makes them."""
    return Samples(
        sample_ids=[f"e{at}m{place}" for place in range(count)],
        group_ids=["made"] * count,
        policy_version_max=np.arange(count),
    )


class Pair:
    """`kinds` says of each episode whether it is fixed, dynamic or relayed; `ack_on_step` is as the service has it."""

    def __init__(
        self, link: LossyLink, store: redis.Redis, kinds: Sequence[str], ack_on_step: bool, crash: Callable[[str], None]
    ) -> None:  # fmt: skip
        """`link` leads to the service; `crash` kills the buffer or the store, and starts it again."""
        self.crash, self.link = crash, link
        self.run_id, self.model, self.store, self.kinds = uuid.uuid4().hex, Model(ack_on_step), store, kinds
        self.buffer, self.ledger, self.relay = (
            blocking(kind, link.address, timeout_s=20) for kind in (BufferClient, LedgerClient, RelayClient)
        )

    def same(self, expected: Callable[[], Any], call: Callable, *arguments: Any, **options: Any) -> None:
        """A call whose answer is lost is carried out, and then sent again by the client: so the model is asked twice."""
        lost = self.link.lost
        try:
            answer = call(self.run_id, *arguments, **options)
        except BatonError as error:
            answer = type(error)
        for _ in range(self.link.lost - lost):
            expected()
        assert answer == expected(), (call, arguments)

    def open(self, at: int, odd: int = 0) -> None:
        """`odd`: a fixed episode is declared with so many samples more than it will get."""
        expected, relayed = GROUP * GROUPS + odd if self.kinds[at] == "fixed" else None, self.kinds[at] == "relayed"
        sizes = {"global_batch_size": BATCH, "micro_batch_size": MICRO, "relayed": relayed}
        answer = partial(self.model.open, at, expected or 0, relayed)
        self.same(answer, self.buffer.open_episode, at, expected_samples=expected, **sizes)

    def issue(self, at: int, group: int, producer: str) -> None:
        """Asks for the last group as well."""

        def sorted_out(*arguments: Any, **options: Any) -> dict[int, str]:
            issued = self.ledger.issue_groups(*arguments, **options)
            lists = {"granted": issued.granted, "stored": issued.stored, "held": issued.held, "dead": issued.dead}
            return {int(group[1:]): word for word, found in lists.items() for group in found}

        groups = sorted({group, GROUPS - 1})
        names = [f"g{number}" for number in groups]
        answer = partial(self.model.issue, at, groups, producer)
        self.same(answer, sorted_out, at, names, producer=producer, timeout_s=600)

    def report(self, at: int, group: int, producer: str, failure: str) -> None:
        answer = partial(self.model.fail if failure else self.model.generated, at, group, producer)
        self.same(answer, self.ledger.report_groups, at, [f"g{group}"], producer=producer, failure=failure)

    def put(self, at: int, group: int, request: str = "") -> None:
        """Its request is called as the group is, unless another name is given."""
        name, samples = request or f"g{group}", samples_of(at, group)
        answer = partial(self.model.put_group, at, group, samples.sample_ids, name)
        self.same(answer, self.buffer.put, at, samples, request_id=name)

    def close(self, at: int) -> None:
        self.same(partial(self.model.close, at), self.buffer.close_episode, at)

    def select(self, at: int, *, others: bool = True, every: int = 1, gone: bool = False, made: int = 0) -> None:
        """Of the episode's samples and the other relayed ones' every so manyth, new ones, and one that does not exist."""
        known = self.model.episodes
        sources = [other for other in known if self.kinds[other] == "relayed" and (others or other == at)]
        references = [(other, place) for other in sources for place in range(len(known[other].samples))][::every]
        references += [(at, 99)] if gone else []
        references += [(-1, place) for place in range(made)]
        chosen, new = np.asarray(references, np.int64).reshape(-1, 2), made_for(at, made) if made else None
        answer = partial(self.model.select, at, references, new.sample_ids if new else [])
        self.same(answer, self.relay.select, at, chosen, new)

    def lease(self, at: int, step: int, lessee: str) -> None:
        def batches(run_id: str) -> list:
            answer: list = []
            try:
                for batch in self.buffer.lease(run_id, at, pass_index=0, step_index=step, lessee=lessee, wait_s=0.0):
                    answer.append((batch.lease_id, batch.samples.sample_ids))
            except BatonError as error:
                answer.append(type(error))
            return answer

        self.same(partial(self.model.lease, at, step, lessee), batches)

    def _attempt(self, at: int, step: int, age: int) -> int:
        """So many attempts ago."""
        episode = self.model.episodes.get(at)
        return max(1, episode.steps[step].attempt - age) if episode and step in episode.steps else 1

    def release(self, at: int, step: int, age: int = 0) -> None:
        attempt = self._attempt(at, step, age)
        answer = partial(self.model.release, at, step, attempt)
        self.same(answer, self.buffer.release_lease, at, f"p0-s{step}-a{attempt}", reason="no room")

    def renew(self, at: int, step: int, lessee: str, age: int = 0) -> None:
        attempt = self._attempt(at, step, age)

        def renewed(*arguments: Any, **options: Any) -> str:
            lease_id, holds_s = self.buffer.renew_lease(*arguments, **options)
            assert holds_s == 600.0
            return lease_id

        answer = partial(self.model.renew, at, step, attempt, lessee)
        self.same(answer, renewed, at, f"p0-s{step}-a{attempt}", lessee=lessee)

    def ack(self, at: int, step: int, age: int = 0, again: bool = False) -> None:
        """By a new optimizer step, or again by the newest one that there is."""
        attempt, global_step = self._attempt(at, step, age), max(0, len(self.model.global_steps) - again)
        answer = partial(self.model.ack, at, step, attempt, global_step)
        self.same(answer, self.buffer.ack, at, f"p0-s{step}-a{attempt}", global_step=global_step)

    def confirm(self, behind: int) -> None:
        """A checkpoint holds all optimizer steps but the last so many."""
        newest = max(self.model.global_steps, default=-1) - behind
        if newest >= 0:
            self.same(partial(self.model.confirm, newest), self.ledger.confirm_trained, newest)

    def rewind(self, behind: int) -> None:
        """The trainer loads a checkpoint that lacks the last so many optimizer steps, but none that is acknowledged."""
        back = max(max(self.model.global_steps, default=-1) - behind, self.model.newest_acked())
        if back >= 0:
            self.same(partial(self.model.rewind, back), self.ledger.rewind_trained, back)

    def end(self, at: int) -> None:
        self.same(partial(self.model.end, at), self.buffer.delete_episode, at)

    def count(self, at: int) -> None:
        self.same(partial(self.model.counts, at), self.buffer.get_episode, at)

    def lose_next_answer(self, at: int, number: int, victim: str | None) -> None:
        """Of the next call, which is carried out; the victim dies then."""
        if self.link.lost < LOST_ANSWERS:
            self.link.lose_next_answer(partial(self.crash, victim) if victim else lambda: None)

    def crash_between_calls(self, at: int, number: int, victim: str) -> None:
        """The model knows nothing of it."""
        self.crash(victim)

    def let_lease_expire(self, at: int, step: int) -> None:
        if self.model.expire(at, step):
            self._make_old(f"episode:{at}:steps", f"p0-s{step}")

    def take_over(self, at: int, step: int) -> None:
        """Whoever holds the step lets its lease expire, the other one leases it, and what the first one does is too late."""
        held = self.model.episodes[at].steps.get(step) if at in self.model.episodes else None
        first, other = ("one", "two") if held and held.lessee == "one" else ("two", "one")
        self.let_lease_expire(at, step)
        self.lease(at, step, other)
        if self._attempt(at, step, 0) > 1:
            self.ack(at, step, age=1)
            self.release(at, step, age=1)
            self.renew(at, step, first, age=1)

    def let_issue_expire(self, at: int, group: int) -> None:
        if at in self.model.episodes and (issue := self.model.episodes[at].issues.get(group)):
            issue.expired = True
            self._make_old(f"episode:{at}:issues", f"g{group}")

    def _make_old(self, key: str, name: str) -> None:
        """Nobody waits for a time-out here: the record's time is set back."""
        key = f"baton:{{{self.run_id}}}:{key}"
        state, attempt, _, rest = self.store.hget(key, name).decode().split(" ", 3)
        self.store.hset(key, name, f"{state} {attempt} {time.time() - 10_000:.3f} {rest}")

    def finish(self) -> None:
        """Compares all counts, and asks for the proof from the store."""
        self.link.lose_nothing()
        for at in range(len(self.kinds)):
            self.count(at)
        audit = self.ledger.audit(self.run_id)
        assert len(audit.faults) == self.model.faults(), list(audit.faults)
        assert all(fault.endswith("never put") for fault in audit.faults)
        assert {line.partition(":")[0] for line in audit.dead} == self.model.dead | self.model.failed()
        assert {line.partition(" of run ")[0] for line in audit.untrained} == self.model.untrained()
        assert audit.optimizer_steps == len(self.model.global_steps)
        assert (audit.ended_episodes, audit.ended_samples) == (len(self.model.ended), sum(self.model.ended.values()))
        for client in (self.buffer, self.ledger, self.relay):
            client.close()
