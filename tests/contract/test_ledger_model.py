"""Any interleaving of calls and crashes is answered as a model in plain Python says, and the store's proof holds at its end.

A crash is `kill -9` and a new start: of the buffer, or of the store, which has nothing then but its append-only file. It
comes between two calls, or when a call is carried out and its answer is on the way, and lost. An answer can also get lost
without a crash; the client asks again.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from ledger_model import ATTEMPTS
from ledger_pair import Pair
from lossy_link import LossyLink
from whole_ledger_model import GROUPS

from baton.config.services import StoreConfig
from processes import Process, ServiceProcess, StoreProcess

pytestmark = pytest.mark.slow

CRASHES = {"buffer": 6, "store": 25}
"""In all, at most; the buffer takes a second to start, the store a tenth."""
CRASHES_OF_A_RUN = {"buffer": 1, "store": 3}

KINDS = ["fixed", "dynamic", "relayed", "relayed"]
EPISODES = st.sampled_from([0, 0, 0, 0, 1, 2, 3])
GROUP_NUMBERS = st.sampled_from([0, 0, 1, 2, 3])
STEPS = st.sampled_from([0, 0, 0, 1, 1, 2])

LEASE, RELEASE, RENEW, ACK, CRASH = Pair.lease, Pair.release, Pair.renew, Pair.ack, Pair.crash_between_calls
EXPIRE, ISSUE = Pair.let_lease_expire, Pair.issue
UNANSWERED = [(Pair.lose_next_answer, {"victim": victim}) for victim in ("buffer", "store")]
STEP_DEEDS = st.sampled_from(
    [
        (LEASE, {"lessee": "one"}), (LEASE, {"lessee": "two"}), (Pair.take_over, {}), (Pair.take_over, {}),
        (EXPIRE, {}), (RELEASE, {}), (RELEASE, {"age": 1}),
        (RENEW, {"lessee": "one"}), (RENEW, {"lessee": "two"}), (RENEW, {"lessee": "one", "age": 1}),
        (ACK, {}), (ACK, {"age": 1}), (ACK, {"age": 1}), (ACK, {"again": True}), (ACK, {"again": True}),
        (CRASH, {"victim": "buffer"}), (CRASH, {"victim": "store"}), *UNANSWERED,
    ]
)  # fmt: skip
GROUP_DEEDS = st.sampled_from(
    [
        (ISSUE, {"producer": "one"}), (ISSUE, {"producer": "one"}),
        (ISSUE, {"producer": "two"}), (ISSUE, {"producer": "two"}),
        (Pair.report, {"producer": "one", "failure": ""}), (Pair.report, {"producer": "one", "failure": "no reward"}),
        (Pair.report, {"producer": "two", "failure": ""}), (Pair.report, {"producer": "two", "failure": "no reward"}),
        (Pair.let_issue_expire, {}), (Pair.let_issue_expire, {}), (Pair.let_issue_expire, {}),
        (Pair.put, {}), (Pair.put, {"request": "g0"}), (Pair.put, {"request": "other"}),
        (CRASH, {"victim": "buffer"}), (CRASH, {"victim": "store"}), *UNANSWERED,
    ]
)  # fmt: skip


class Runs(RuleBasedStateMachine):
    """Whole lists of deeds are drawn for one step or one group, so that they meet each other often."""

    link: LossyLink
    ack_on: str
    store: redis.Redis
    processes: dict[str, Process]
    crashes: Counter
    calls: Counter

    @initialize(
        kinds=st.permutations(KINDS), depth=st.integers(0, 3), others=st.sets(st.integers(1, 3)),
        ends=st.sets(st.integers(0, 3)),
    )  # fmt: skip
    def begin(self, kinds, depth, others, ends):
        """Episode 0, which most calls are about, is new, opened, begun or rolled out; of some others a step is trained.
        At the end, some are trained and ended, if they can be."""
        self.crashed, self.ends = Counter(), ends
        self.pair = Pair(self.link, self.store, kinds, self.ack_on == "step", self.crash, self.calls)
        for at in others:
            self.roll_out(at)
            self.pair.lease(at, 0, "one")
            self.pair.ack(at, 0)
        if depth:
            self.pair.open(0)
        if depth == 2:
            self.pair.put(0, 0)
        if depth == 3:
            self.roll_out(0)

    @rule(at=EPISODES, odd=st.sampled_from([0, 0, 1]))
    def open(self, at, odd):
        self.pair.open(at, odd)

    @rule(at=EPISODES, group=GROUP_NUMBERS, deeds=st.lists(GROUP_DEEDS, min_size=4, max_size=10))
    def contend_for_a_group(self, at, group, deeds):
        if at not in self.pair.model.episodes:
            self.pair.open(at)
        for deed, options in deeds:
            deed(self.pair, at, group, **options)

    @rule(at=EPISODES, step=STEPS, deeds=st.lists(STEP_DEEDS, min_size=4, max_size=10))
    def contend_for_a_step(self, at, step, deeds):
        if at not in self.pair.model.ended and not self.pair.model.is_ready(at):
            self.roll_out(at)
        for deed, options in deeds:
            deed(self.pair, at, step, **options)

    @rule(at=EPISODES)
    def close(self, at):
        self.pair.close(at)

    @rule(
        at=EPISODES, others=st.booleans(), every=st.sampled_from([1, 1, -1, 3]), gone=st.booleans(),
        made=st.sampled_from([0, 0, 1, 3]),
    )  # fmt: skip
    def select(self, at, others, every, gone, made):
        self.pair.select(at, others=others, every=every, gone=gone, made=made)

    @rule(behind=st.integers(0, 3))
    def save_a_checkpoint(self, behind):
        self.pair.confirm(behind)

    @rule(behind=st.integers(0, 3))
    def load_a_checkpoint(self, behind):
        self.pair.rewind(behind)

    @rule(at=EPISODES)
    def end(self, at):
        self.pair.end(at)

    @rule(at=EPISODES)
    def count(self, at):
        self.pair.count(at)

    @rule(at=EPISODES, left_out=st.booleans())
    def roll_out(self, at, left_out=False):
        """All that leads to steps, so that runs get further than single calls do; the last group may be left out."""
        self.pair.open(at)
        if left_out:
            self.pair.issue(at, GROUPS - 1, "one")
            self.pair.report(at, GROUPS - 1, "one", "no reward")
        for group in range(GROUPS - left_out):
            self.pair.put(at, group)
        self.pair.close(at)
        self.pair.select(at, made=at)

    @rule(at=EPISODES, also_end=st.booleans())
    def train(self, at, also_end):
        """As many steps as an episode has at most."""
        for step in range(3 if self.pair.model.is_ready(at) else 0):
            self.pair.lease(at, step, "one")
            self.pair.ack(at, step)
        if also_end:
            self.pair.confirm(0)
            self.pair.end(at)

    @rule(victim=st.sampled_from(sorted(CRASHES)))
    def crash(self, victim):
        if self.crashed[victim] < CRASHES_OF_A_RUN[victim] and Runs.crashes[victim] < CRASHES[victim]:
            self.crashed[victim] += 1
            Runs.crashes[victim] += 1
            self.processes[victim].kill()
            self.processes[victim].start()

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            for at in sorted(self.ends):
                self.train(at, also_end=True)
            self.pair.finish()


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[StoreProcess]:
    """With the append-only file as the product sets it."""
    process = StoreProcess(tmp_path)
    process.command += ["--appendfsync", StoreConfig().appendfsync]
    yield process.start()
    process.kill()


@pytest.fixture(params=["step", "checkpoint"])
def own_buffer(
    request: pytest.FixtureRequest, own_store: StoreProcess, run_file: Path, tmp_path: Path
) -> Iterator[ServiceProcess]:
    Runs.ack_on = request.param
    options = f"store.max_attempts={ATTEMPTS}", f"store.ack_on={request.param}"
    settings = (part for option in options for part in ("--set", option))
    process = ServiceProcess("buffer", run_file, tmp_path, "--store", own_store.url, *settings)
    yield process.start()
    process.kill()


def test_any_interleaving_of_calls_and_crashes_is_answered_as_the_model_says(own_buffer, own_store, capsys):
    Runs.processes, Runs.crashes, Runs.calls = {"buffer": own_buffer, "store": own_store}, Counter(), Counter()
    with redis.Redis.from_url(own_store.url) as Runs.store, closing(LossyLink(own_buffer.address)) as Runs.link:
        run_state_machine_as_test(
            Runs,
            settings=settings(
                max_examples=40,
                stateful_step_count=40,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    with capsys.disabled():
        kills = ", ".join(f"{Runs.crashes[victim]} {victim}" for victim in CRASHES)
        print(f"\n{Runs.ack_on}: kills that hit: {kills}; {Runs.link.lost} answers lost")
    assert min(Runs.crashes["buffer"], Runs.crashes["store"], Runs.link.lost) > 0
