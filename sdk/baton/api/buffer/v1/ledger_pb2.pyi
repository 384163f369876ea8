from baton.api.common.v1 import samples_pb2 as _samples_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class IssueGroupsRequest(_message.Message):
    __slots__ = ("run_id", "episode_id", "group_ids", "producer", "timeout_s")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_IDS_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    group_ids: _containers.RepeatedScalarFieldContainer[str]
    producer: str
    timeout_s: float
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ..., group_ids: _Optional[_Iterable[str]] = ..., producer: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class IssueGroupsResponse(_message.Message):
    __slots__ = ("granted", "stored", "held", "dead", "reasons")
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    granted: _containers.RepeatedScalarFieldContainer[str]
    stored: _containers.RepeatedScalarFieldContainer[str]
    held: _containers.RepeatedScalarFieldContainer[str]
    dead: _containers.RepeatedScalarFieldContainer[str]
    reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, granted: _Optional[_Iterable[str]] = ..., stored: _Optional[_Iterable[str]] = ..., held: _Optional[_Iterable[str]] = ..., dead: _Optional[_Iterable[str]] = ..., reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class ReportGroupsRequest(_message.Message):
    __slots__ = ("run_id", "episode_id", "group_ids", "producer", "failure")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_IDS_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    group_ids: _containers.RepeatedScalarFieldContainer[str]
    producer: str
    failure: str
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ..., group_ids: _Optional[_Iterable[str]] = ..., producer: _Optional[str] = ..., failure: _Optional[str] = ...) -> None: ...

class ReportGroupsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConfirmTrainedRequest(_message.Message):
    __slots__ = ("run_id", "global_step")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_STEP_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    global_step: int
    def __init__(self, run_id: _Optional[str] = ..., global_step: _Optional[int] = ...) -> None: ...

class ConfirmTrainedResponse(_message.Message):
    __slots__ = ("steps",)
    STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    def __init__(self, steps: _Optional[int] = ...) -> None: ...

class RewindTrainedRequest(_message.Message):
    __slots__ = ("run_id", "global_step")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_STEP_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    global_step: int
    def __init__(self, run_id: _Optional[str] = ..., global_step: _Optional[int] = ...) -> None: ...

class RewindTrainedResponse(_message.Message):
    __slots__ = ("steps",)
    STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    def __init__(self, steps: _Optional[int] = ...) -> None: ...

class RollBackRequest(_message.Message):
    __slots__ = ("run_id", "episode_id", "global_step")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_STEP_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    global_step: int
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ..., global_step: _Optional[int] = ...) -> None: ...

class RollBackResponse(_message.Message):
    __slots__ = ("steps",)
    STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    def __init__(self, steps: _Optional[int] = ...) -> None: ...

class ListEpisodesRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class EpisodeState(_message.Message):
    __slots__ = ("run_id", "episode_id", "issued_groups", "generated_groups", "failed_groups", "stored_samples", "stored_bytes", "training_samples", "leased_samples", "trained_samples", "acked_samples", "current_pass", "closed", "relayed", "ended")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    ISSUED_GROUPS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_GROUPS_FIELD_NUMBER: _ClassVar[int]
    FAILED_GROUPS_FIELD_NUMBER: _ClassVar[int]
    STORED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRAINING_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LEASED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    TRAINED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    ACKED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    CURRENT_PASS_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    RELAYED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    issued_groups: int
    generated_groups: int
    failed_groups: int
    stored_samples: int
    stored_bytes: int
    training_samples: int
    leased_samples: int
    trained_samples: int
    acked_samples: int
    current_pass: int
    closed: bool
    relayed: bool
    ended: bool
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ..., issued_groups: _Optional[int] = ..., generated_groups: _Optional[int] = ..., failed_groups: _Optional[int] = ..., stored_samples: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., training_samples: _Optional[int] = ..., leased_samples: _Optional[int] = ..., trained_samples: _Optional[int] = ..., acked_samples: _Optional[int] = ..., current_pass: _Optional[int] = ..., closed: bool = ..., relayed: bool = ..., ended: bool = ...) -> None: ...

class ListEpisodesResponse(_message.Message):
    __slots__ = ("episodes",)
    EPISODES_FIELD_NUMBER: _ClassVar[int]
    episodes: _containers.RepeatedCompositeFieldContainer[EpisodeState]
    def __init__(self, episodes: _Optional[_Iterable[_Union[EpisodeState, _Mapping]]] = ...) -> None: ...

class FindSampleRequest(_message.Message):
    __slots__ = ("run_id", "sample_id")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    sample_id: str
    def __init__(self, run_id: _Optional[str] = ..., sample_id: _Optional[str] = ...) -> None: ...

class FindSampleResponse(_message.Message):
    __slots__ = ("episode_id", "position", "samples", "steps", "made")
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MADE_FIELD_NUMBER: _ClassVar[int]
    episode_id: int
    position: int
    samples: _samples_pb2.SampleBatch
    steps: _containers.RepeatedScalarFieldContainer[str]
    made: bool
    def __init__(self, episode_id: _Optional[int] = ..., position: _Optional[int] = ..., samples: _Optional[_Union[_samples_pb2.SampleBatch, _Mapping]] = ..., steps: _Optional[_Iterable[str]] = ..., made: bool = ...) -> None: ...

class AuditRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class AuditResponse(_message.Message):
    __slots__ = ("faults", "episodes", "ended_episodes", "ended_samples", "optimizer_steps", "dead", "untrained")
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    EPISODES_FIELD_NUMBER: _ClassVar[int]
    ENDED_EPISODES_FIELD_NUMBER: _ClassVar[int]
    ENDED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_STEPS_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    UNTRAINED_FIELD_NUMBER: _ClassVar[int]
    faults: _containers.RepeatedScalarFieldContainer[str]
    episodes: _containers.RepeatedCompositeFieldContainer[EpisodeState]
    ended_episodes: int
    ended_samples: int
    optimizer_steps: int
    dead: _containers.RepeatedScalarFieldContainer[str]
    untrained: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, faults: _Optional[_Iterable[str]] = ..., episodes: _Optional[_Iterable[_Union[EpisodeState, _Mapping]]] = ..., ended_episodes: _Optional[int] = ..., ended_samples: _Optional[int] = ..., optimizer_steps: _Optional[int] = ..., dead: _Optional[_Iterable[str]] = ..., untrained: _Optional[_Iterable[str]] = ...) -> None: ...

class PutStateRequest(_message.Message):
    __slots__ = ("run_id", "name", "value", "expected_revision")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    name: str
    value: bytes
    expected_revision: int
    def __init__(self, run_id: _Optional[str] = ..., name: _Optional[str] = ..., value: _Optional[bytes] = ..., expected_revision: _Optional[int] = ...) -> None: ...

class PutStateResponse(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: _Optional[int] = ...) -> None: ...

class GetStateRequest(_message.Message):
    __slots__ = ("run_id", "name")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    name: str
    def __init__(self, run_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class GetStateResponse(_message.Message):
    __slots__ = ("value", "revision")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    revision: int
    def __init__(self, value: _Optional[bytes] = ..., revision: _Optional[int] = ...) -> None: ...
