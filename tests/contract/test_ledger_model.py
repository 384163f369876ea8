"""Any interleaving of calls is answered as a model in plain Python says, and the store's proof holds at its end."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from ledger_model import ATTEMPTS, BATCH, GROUP, GROUPS, MICRO, Model

from baton.clients import BufferClient, LedgerClient, RelayClient, blocking
from baton.errors import BatonError
from baton.samples import Samples
from processes import ServiceProcess, StoreProcess

CRASHES = 12
"""Of the buffer, in all: each costs half a second."""

EPISODES = st.sampled_from([0, 1, 2, 3])
"""0: fixed; 1 and 3: relayed; 2: dynamic."""
GROUP_NUMBERS = st.integers(0, GROUPS - 1)
STEPS = st.integers(0, 2)
NAMES = st.sampled_from(["one", "two"])
AGES = st.sampled_from([0, 0, 0, 1])
"""How many attempts, or optimizer steps, ago."""


def samples_of(at: int, group: int) -> Samples:
    numbers = [GROUP * group + place for place in range(GROUP)]
    return Samples(
        sample_ids=[f"e{at}s{number}" for number in numbers],
        group_ids=[f"g{group}"] * GROUP,
        policy_version_max=np.asarray(numbers),
    )


class Runs(RuleBasedStateMachine):
    """One run of the real service beside one of the model."""

    address: str
    store: redis.Redis
    service: ServiceProcess
    crashes = 0

    def __init__(self) -> None:
        super().__init__()
        self.run_id, self.model, self.crashed = uuid.uuid4().hex, Model(), False
        self.buffer, self.ledger, self.relay = (
            blocking(kind, self.address, timeout_s=20) for kind in (BufferClient, LedgerClient, RelayClient)
        )

    def same(self, expected, call, *arguments, **options):
        """Asserts that the service answers as the model does."""
        try:
            answer = call(self.run_id, *arguments, **options)
        except BatonError as error:
            answer = type(error)
        assert answer == expected
        return answer

    def attempt(self, at: int, step: int, age: int) -> int:
        episode = self.model.episodes.get(at)
        return max(1, episode.steps[step].attempt - age) if episode and step in episode.steps else 1

    @rule(at=EPISODES, odd=AGES)
    def open(self, at, odd):
        expected = GROUP * GROUPS + odd if at == 0 else None
        sizes = {"global_batch_size": BATCH, "micro_batch_size": MICRO, "relayed": at in (1, 3)}
        answer = self.model.open(at, expected or 0, at in (1, 3))
        self.same(answer, self.buffer.open_episode, at, expected_samples=expected, **sizes)

    @rule(at=EPISODES, groups=st.lists(GROUP_NUMBERS, min_size=1, unique=True), producer=NAMES)
    def issue(self, at, groups, producer):
        def sorted_out(*arguments, **options) -> dict[int, str]:
            issued = self.ledger.issue_groups(*arguments, **options)
            lists = {"granted": issued.granted, "stored": issued.stored, "held": issued.held, "dead": issued.dead}
            return {int(group[1:]): word for word, found in lists.items() for group in found}

        names = [f"g{group}" for group in groups]
        self.same(self.model.issue(at, groups, producer), sorted_out, at, names, producer=producer, timeout_s=600)

    @rule(at=EPISODES, group=GROUP_NUMBERS, producer=NAMES, failure=st.sampled_from(["", "no reward"]))
    def report(self, at, group, producer, failure):
        if failure:
            self.model.fail(at, group, producer)
        self.same(None, self.ledger.report_groups, at, [f"g{group}"], producer=producer, failure=failure)

    @rule(at=EPISODES, group=GROUP_NUMBERS, request=st.sampled_from(["own", "own", "own", "g0", "other"]))
    def put(self, at, group, request):
        name, samples = f"g{group}" if request == "own" else request, samples_of(at, group)
        self.same(self.model.put(at, group, samples.sample_ids, name), self.buffer.put, at, samples, request_id=name)

    @rule(at=EPISODES)
    def close(self, at):
        self.same(self.model.close(at), self.buffer.close_episode, at)

    @rule(at=EPISODES, others=st.booleans(), step=st.sampled_from([1, 1, -1, 3]), extra=st.booleans())
    def select(self, at, others, step, extra):
        known = self.model.episodes
        sources = [other for other in known if other in (1, 3) and (others or other == at)]
        references = [(other, place) for other in sources for place in range(len(known[other].samples))][::step]
        references += [(at, 99)] if extra and not others else []
        chosen = np.asarray(references, np.int64).reshape(-1, 2)
        self.same(self.model.select(at, references), self.relay.select, at, chosen)

    @rule(at=EPISODES, step=STEPS, lessee=NAMES)
    def lease(self, at, step, lessee):
        def batches(run_id: str) -> list:
            answer: list = []
            try:
                for batch in self.buffer.lease(run_id, at, pass_index=0, step_index=step, lessee=lessee, wait_s=0.0):
                    answer.append((batch.lease_id, batch.samples.sample_ids))
            except BatonError as error:
                answer.append(type(error))
            return answer

        self.same(self.model.lease(at, step, lessee), batches)

    @rule(at=EPISODES, step=STEPS, age=AGES)
    def release(self, at, step, age):
        attempt = self.attempt(at, step, age)
        answer = self.model.release(at, step, attempt)
        self.same(answer, self.buffer.release_lease, at, f"p0-s{step}-a{attempt}", reason="no room")

    @rule(at=EPISODES, step=STEPS, age=AGES, lessee=NAMES)
    def renew(self, at, step, age, lessee):
        attempt = self.attempt(at, step, age)
        answer = self.model.renew(at, step, attempt, lessee)
        expected = (answer, 600.0) if isinstance(answer, str) else answer
        self.same(expected, self.buffer.renew_lease, at, f"p0-s{step}-a{attempt}", lessee=lessee)

    @rule(at=EPISODES, step=STEPS, age=AGES, earlier=AGES)
    def ack(self, at, step, age, earlier):
        attempt, global_step = self.attempt(at, step, age), max(0, len(self.model.global_steps) - earlier)
        answer = self.model.ack(at, step, attempt, global_step)
        self.same(answer, self.buffer.ack, at, f"p0-s{step}-a{attempt}", global_step=global_step)

    @rule(at=EPISODES)
    def end(self, at):
        self.same(self.model.end(at), self.buffer.delete_episode, at)

    @rule(at=EPISODES)
    def count(self, at):
        self.same(self.model.counts(at), self.buffer.get_episode, at)

    @rule(at=EPISODES, step=STEPS)
    def let_a_lease_expire(self, at, step):
        held = self.model.episodes[at].steps.get(step) if at in self.model.episodes else None
        if held and held.lessee and held.global_step is None:
            held.expired = True
            self.make_old(f"baton:{{{self.run_id}}}:episode:{at}:steps", f"p0-s{step}")

    @rule(at=EPISODES, group=GROUP_NUMBERS)
    def let_an_issue_expire(self, at, group):
        if at in self.model.episodes and (issue := self.model.episodes[at].issues.get(group)):
            issue.expired = True
            self.make_old(f"baton:{{{self.run_id}}}:episode:{at}:issues", f"g{group}")

    def make_old(self, key: str, name: str) -> None:
        state, attempt, _, rest = self.store.hget(key, name).decode().split(" ", 3)
        self.store.hset(key, name, f"{state} {attempt} {time.time() - 10_000:.3f} {rest}")

    @rule(at=EPISODES)
    def roll_out(self, at):
        """All that leads to a closed episode, so that runs get further than single calls do."""
        self.open(at, 0)
        for group in range(GROUPS):
            self.put(at, group, "own")
        self.close(at)
        self.select(at, True, 1, False)

    @rule(at=EPISODES, lessee=NAMES)
    def train(self, at, lessee):
        for step in range(2):
            self.lease(at, step, lessee)
            self.ack(at, step, 0, 0)

    @rule()
    def kill_9_of_the_buffer(self):
        if not self.crashed and Runs.crashes < CRASHES:
            self.crashed = True
            Runs.crashes += 1
            self.service.kill()
            self.service.start()

    def teardown(self) -> None:
        for at in range(4):
            self.count(at)
        audit = self.ledger.audit(self.run_id)
        assert list(audit.faults) == []
        assert {line.partition(":")[0] for line in audit.dead} == self.model.dead
        assert audit.optimizer_steps == len(self.model.global_steps)
        assert (audit.ended_episodes, audit.ended_samples) == (len(self.model.ended), sum(self.model.ended.values()))
        for client in (self.buffer, self.ledger, self.relay):
            client.close()


@pytest.fixture
def own_buffer(store: StoreProcess, run_file: Path, tmp_path: Path) -> Iterator[ServiceProcess]:
    process = ServiceProcess("buffer", run_file, tmp_path, "--store", store.url, "--set", f"store.max_attempts={ATTEMPTS}")
    yield process.start()
    process.kill()


@pytest.mark.slow
def test_any_interleaving_is_answered_as_the_model_says(own_buffer, store):
    Runs.address, Runs.service, Runs.crashes = own_buffer.address, own_buffer, 0
    with redis.Redis.from_url(store.url) as Runs.store:
        run_state_machine_as_test(
            Runs,
            settings=settings(
                max_examples=60,
                stateful_step_count=40,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
