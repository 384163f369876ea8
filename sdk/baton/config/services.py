"""`services`, `store` and `deadlines`: where the processes listen, what they keep, how long they wait."""

from typing import Annotated, Literal

from pydantic import Field

from baton.config.base import Count, Port, PositiveInt, Seconds, Section, matching

Address = Annotated[
    str,
    matching(
        r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}",
        "must be host:port",
        "write it like 10.0.0.1:50051 or [::1]:50051",
    ),
]
StoreUrl = Annotated[
    str,
    matching(
        r"(rediss?(\+(cluster|sentinel))?|unix)://.+",
        "must be the address of a Redis-protocol server",
        "write it like redis://10.0.0.1:6379/0",
    ),
]


class ServicesConfig(Section):
    """Addresses of the services. One that has an address here runs elsewhere; the others are started by the
    run."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address that the started services listen on, and that the trainer tells the receivers of weights. To
    serve other machines write this machine's own address or name, not 0.0.0.0."""

    buffer_port: Port = 0
    """Port of the buffer. 0: any free one."""

    coordinator_port: Port = 0
    """gRPC port of the coordinator. 0: any free one."""

    rest_port: Port = 0
    """HTTP port of the coordinator's status pages. 0: any free one."""

    trainer_port: Port = 0
    """Port of the trainer group `trainer`. 0: any free one. Further groups take free ones."""

    rollout_port: Port = 0
    """Port of rollout replica 0; replica i takes rollout_port + i. 0: any free ones."""

    openai_port: Port = 0
    """HTTP port of rollout replica 0's OpenAI-compatible server; replica i takes openai_port + i. 0: any free
    ones."""

    buffer_address: Address | None = None
    """host:port of a buffer that runs already. null: start one."""

    coordinator_address: Address | None = None
    """host:port of a coordinator that runs already. null: start one."""

    trainer_address: Address | None = None
    """host:port of a trainer that runs already. null: start one."""

    group_addresses: dict[str, Address] = Field(default_factory=dict)
    """host:port of each further trainer group that runs already, by its name. A group that is not here is started."""

    def address_of(self, group: str) -> Address | None:
        """Where a trainer group runs already; None if the run starts it."""
        return self.trainer_address if group == "trainer" else self.group_addresses.get(group)

    rollout_addresses: list[Address] = Field(default_factory=list)
    """host:port of each rollout replica that runs already, in the order of their ids. Empty: start them."""


class StoreConfig(Section):
    """The Redis-protocol server behind the buffer, and the rules of the data in it."""

    url: StoreUrl | None = None
    """redis://, rediss:// or unix:// address of a server that runs already; redis+cluster:// or
    redis+sentinel:// addresses of several, or with rediss over TLS. null: start a local one."""

    port: Port = 0
    """Port of the started server. 0: any free one."""

    data_dir: str | None = None
    """Directory of the started server's files. null: `store` in the run's directory."""

    appendfsync: Literal["everysec", "always", "no"] = "always"
    """When the started server forces its log to disk. `always` loses nothing, at a price per write.
    `everysec` may lose a second to a power failure, and if the server itself is killed while the disk is busy,
    what it wrote meanwhile; `no` may lose more to a power failure."""

    max_samples: Count = 0
    """Samples that the run may have in the store, history included, with what only checkpoints need of it; beyond that a
    put waits. 0: any number."""

    max_bytes: Count = 0
    """Bytes of samples that the run may have in the store, history included, with what only checkpoints need of it; beyond
    that a put waits. 0: any number."""

    lease_timeout_s: Seconds = 600.0
    """Seconds without a sign of life after which a leased step may be leased by somebody else."""

    max_attempts: PositiveInt = 3
    """How often a step may be leased, or a prompt group issued, before it is given up with the last reason."""

    ack_on: Literal["step", "checkpoint"] = "step"
    """When a trained sample counts as done: after its optimizer step, or after the next checkpoint."""

    relay_max_bytes: PositiveInt = 2**30
    """Bytes that the relayed episodes which the relay function is shown may take in the store together. What only the newest
    checkpoint needs comes on top, and so does what the one that is being written needs: at most as much each."""

    relay_when_full: Literal["error", "evict"] = "error"
    """What happens beyond `relay_max_bytes`: the run stops, or the oldest episode is evicted."""


class DeadlinesConfig(Section):
    """The longest wait for each kind of work, in seconds. A wait that exceeds it is an error, never a
    hang."""

    generate_s: Seconds = 600.0
    """One generation request."""

    reward_s: Seconds = 120.0
    """How long the reward functions' workers may be silent while calls wait."""

    score_s: Seconds = 1800.0
    """One evaluation of samples by a model of a trainer group, which may have to wait for an optimizer step."""

    relay_s: Seconds = 120.0
    """One call of the relay function."""

    train_step_s: Seconds = 1800.0
    """One optimizer step."""

    publish_begin_s: Seconds = 60.0
    """From the start of a weight update until a replica is ready for the transfer: its responses under way have ended, and
    its engine stands still. A replica that is not is left out."""

    publish_s: Seconds = 300.0
    """One transfer of the weights to all rollout replicas."""

    publish_commit_s: Seconds = 60.0
    """From the end of the transfer until a replica serves the new weights. Those that do go on without one that is late."""

    catch_up_s: Seconds = 10.0
    """How long the trainer's next work waits for a replica that is back and gets the present version. It gets it later then,
    or the next one. While the trainer has nothing else to do, that may take as long as any publication."""

    checkpoint_s: Seconds = 1800.0
    """One checkpoint, written or read."""

    startup_s: Seconds = 600.0
    """From the start of a service until it is ready."""

    restart_s: Seconds = 600.0
    """How long the run goes on without any rollout replica that serves; one that died must be back by then."""

    buffer_s: Seconds = 60.0
    """One call to the buffer."""

    store_s: Seconds = 30.0
    """How long the buffer sends a command again that the store does not answer: it restarts and reads its file, fails over,
    or waits for its disk. Less than `buffer_s`, or the caller gives up first, and the error does not name the store."""

    @property
    def trainer_s(self) -> float:
        """The longest that a command may keep a trainer's ranks, which wait for each other."""
        return max(self.train_step_s, self.score_s, self.publish_s, self.checkpoint_s, self.generate_s)
