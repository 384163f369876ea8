from baton.api.common.v1 import samples_pb2 as _samples_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EpisodeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EPISODE_KIND_UNSPECIFIED: _ClassVar[EpisodeKind]
    EPISODE_KIND_FIXED: _ClassVar[EpisodeKind]
    EPISODE_KIND_DYNAMIC: _ClassVar[EpisodeKind]
EPISODE_KIND_UNSPECIFIED: EpisodeKind
EPISODE_KIND_FIXED: EpisodeKind
EPISODE_KIND_DYNAMIC: EpisodeKind

class OpenEpisodeRequest(_message.Message):
    __slots__ = ("run_id", "episode_id", "kind", "expected_samples", "global_batch_size", "micro_batch_size", "relayed", "passes", "samples_per_unit")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    RELAYED_FIELD_NUMBER: _ClassVar[int]
    PASSES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_UNIT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    kind: EpisodeKind
    expected_samples: int
    global_batch_size: int
    micro_batch_size: int
    relayed: bool
    passes: int
    samples_per_unit: int
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ..., kind: _Optional[_Union[EpisodeKind, str]] = ..., expected_samples: _Optional[int] = ..., global_batch_size: _Optional[int] = ..., micro_batch_size: _Optional[int] = ..., relayed: bool = ..., passes: _Optional[int] = ..., samples_per_unit: _Optional[int] = ...) -> None: ...

class OpenEpisodeResponse(_message.Message):
    __slots__ = ("stored_samples",)
    STORED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    stored_samples: int
    def __init__(self, stored_samples: _Optional[int] = ...) -> None: ...

class PutRequest(_message.Message):
    __slots__ = ("run_id", "episode_id", "request_id", "samples")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    request_id: str
    samples: _samples_pb2.SampleBatch
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ..., request_id: _Optional[str] = ..., samples: _Optional[_Union[_samples_pb2.SampleBatch, _Mapping]] = ...) -> None: ...

class PutResponse(_message.Message):
    __slots__ = ("first_position", "stored_samples")
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    STORED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    first_position: int
    stored_samples: int
    def __init__(self, first_position: _Optional[int] = ..., stored_samples: _Optional[int] = ...) -> None: ...

class CloseEpisodeRequest(_message.Message):
    __slots__ = ("run_id", "episode_id")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ...) -> None: ...

class CloseEpisodeResponse(_message.Message):
    __slots__ = ("total_samples", "steps_per_pass")
    TOTAL_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_PASS_FIELD_NUMBER: _ClassVar[int]
    total_samples: int
    steps_per_pass: int
    def __init__(self, total_samples: _Optional[int] = ..., steps_per_pass: _Optional[int] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("run_id", "episode_id", "pass_index", "step_index", "data_parallel_rank", "data_parallel_size", "shuffle_seed", "wait_s", "lessee", "micro_batch_tokens")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    PASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_PARALLEL_RANK_FIELD_NUMBER: _ClassVar[int]
    DATA_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    SHUFFLE_SEED_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    LESSEE_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    pass_index: int
    step_index: int
    data_parallel_rank: int
    data_parallel_size: int
    shuffle_seed: int
    wait_s: float
    lessee: str
    micro_batch_tokens: int
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ..., pass_index: _Optional[int] = ..., step_index: _Optional[int] = ..., data_parallel_rank: _Optional[int] = ..., data_parallel_size: _Optional[int] = ..., shuffle_seed: _Optional[int] = ..., wait_s: _Optional[float] = ..., lessee: _Optional[str] = ..., micro_batch_tokens: _Optional[int] = ...) -> None: ...

class LeaseResponse(_message.Message):
    __slots__ = ("lease_id", "samples", "wrapped", "more")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    WRAPPED_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    samples: _samples_pb2.SampleBatch
    wrapped: bytes
    more: bool
    def __init__(self, lease_id: _Optional[str] = ..., samples: _Optional[_Union[_samples_pb2.SampleBatch, _Mapping]] = ..., wrapped: _Optional[bytes] = ..., more: bool = ...) -> None: ...

class RenewLeaseRequest(_message.Message):
    __slots__ = ("run_id", "episode_id", "lease_id", "lessee")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LESSEE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    lease_id: str
    lessee: str
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ..., lease_id: _Optional[str] = ..., lessee: _Optional[str] = ...) -> None: ...

class RenewLeaseResponse(_message.Message):
    __slots__ = ("lease_id", "timeout_s")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    timeout_s: float
    def __init__(self, lease_id: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class ReleaseLeaseRequest(_message.Message):
    __slots__ = ("run_id", "episode_id", "lease_id", "reason")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    lease_id: str
    reason: str
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ..., lease_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReleaseLeaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AckRequest(_message.Message):
    __slots__ = ("run_id", "episode_id", "lease_id", "global_step")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_STEP_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    lease_id: str
    global_step: int
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ..., lease_id: _Optional[str] = ..., global_step: _Optional[int] = ...) -> None: ...

class AckResponse(_message.Message):
    __slots__ = ("acked_steps",)
    ACKED_STEPS_FIELD_NUMBER: _ClassVar[int]
    acked_steps: int
    def __init__(self, acked_steps: _Optional[int] = ...) -> None: ...

class GetEpisodeRequest(_message.Message):
    __slots__ = ("run_id", "episode_id")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ...) -> None: ...

class GetEpisodeResponse(_message.Message):
    __slots__ = ("stored_samples", "leased_samples", "trained_samples", "closed", "group_ids")
    STORED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LEASED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    TRAINED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    GROUP_IDS_FIELD_NUMBER: _ClassVar[int]
    stored_samples: int
    leased_samples: int
    trained_samples: int
    closed: bool
    group_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, stored_samples: _Optional[int] = ..., leased_samples: _Optional[int] = ..., trained_samples: _Optional[int] = ..., closed: bool = ..., group_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteEpisodeRequest(_message.Message):
    __slots__ = ("run_id", "episode_id")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ...) -> None: ...

class DeleteEpisodeResponse(_message.Message):
    __slots__ = ("deleted_samples",)
    DELETED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    deleted_samples: int
    def __init__(self, deleted_samples: _Optional[int] = ...) -> None: ...

class DeleteRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class DeleteRunResponse(_message.Message):
    __slots__ = ("deleted_episodes",)
    DELETED_EPISODES_FIELD_NUMBER: _ClassVar[int]
    deleted_episodes: int
    def __init__(self, deleted_episodes: _Optional[int] = ...) -> None: ...
