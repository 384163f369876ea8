from baton.api.common.v1 import samples_pb2 as _samples_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListHistoryRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class ListHistoryResponse(_message.Message):
    __slots__ = ("episode_ids", "samples", "bytes", "columns")
    EPISODE_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    episode_ids: _containers.RepeatedScalarFieldContainer[int]
    samples: _containers.RepeatedScalarFieldContainer[int]
    bytes: _containers.RepeatedScalarFieldContainer[int]
    columns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, episode_ids: _Optional[_Iterable[int]] = ..., samples: _Optional[_Iterable[int]] = ..., bytes: _Optional[_Iterable[int]] = ..., columns: _Optional[_Iterable[str]] = ...) -> None: ...

class TrimHistoryRequest(_message.Message):
    __slots__ = ("run_id", "keep_episodes", "keep_bytes", "evict_for_bytes", "shown_from", "spared")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    KEEP_EPISODES_FIELD_NUMBER: _ClassVar[int]
    KEEP_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVICT_FOR_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FROM_FIELD_NUMBER: _ClassVar[int]
    SPARED_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    keep_episodes: int
    keep_bytes: int
    evict_for_bytes: bool
    shown_from: int
    spared: _containers.RepeatedCompositeFieldContainer[EpisodeRange]
    def __init__(self, run_id: _Optional[str] = ..., keep_episodes: _Optional[int] = ..., keep_bytes: _Optional[int] = ..., evict_for_bytes: bool = ..., shown_from: _Optional[int] = ..., spared: _Optional[_Iterable[_Union[EpisodeRange, _Mapping]]] = ...) -> None: ...

class EpisodeRange(_message.Message):
    __slots__ = ("first", "end")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    first: int
    end: int
    def __init__(self, first: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class TrimHistoryResponse(_message.Message):
    __slots__ = ("evicted_episode_ids", "shown_episodes")
    EVICTED_EPISODE_IDS_FIELD_NUMBER: _ClassVar[int]
    SHOWN_EPISODES_FIELD_NUMBER: _ClassVar[int]
    evicted_episode_ids: _containers.RepeatedScalarFieldContainer[int]
    shown_episodes: int
    def __init__(self, evicted_episode_ids: _Optional[_Iterable[int]] = ..., shown_episodes: _Optional[int] = ...) -> None: ...

class ReadColumnsRequest(_message.Message):
    __slots__ = ("run_id", "episode_id", "columns")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    columns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ..., columns: _Optional[_Iterable[str]] = ...) -> None: ...

class ReadColumnsResponse(_message.Message):
    __slots__ = ("samples",)
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    samples: _samples_pb2.SampleBatch
    def __init__(self, samples: _Optional[_Union[_samples_pb2.SampleBatch, _Mapping]] = ...) -> None: ...

class ReadSamplesRequest(_message.Message):
    __slots__ = ("run_id", "episode_id", "positions")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ..., positions: _Optional[_Iterable[int]] = ...) -> None: ...

class ReadSamplesResponse(_message.Message):
    __slots__ = ("samples",)
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    samples: _samples_pb2.SampleBatch
    def __init__(self, samples: _Optional[_Union[_samples_pb2.SampleBatch, _Mapping]] = ...) -> None: ...

class SelectSamplesRequest(_message.Message):
    __slots__ = ("run_id", "episode_id", "made", "references")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    MADE_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    made: _samples_pb2.SampleBatch
    references: bytes
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ..., made: _Optional[_Union[_samples_pb2.SampleBatch, _Mapping]] = ..., references: _Optional[bytes] = ...) -> None: ...

class SelectSamplesResponse(_message.Message):
    __slots__ = ("total_samples", "steps_per_pass")
    TOTAL_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_PASS_FIELD_NUMBER: _ClassVar[int]
    total_samples: int
    steps_per_pass: int
    def __init__(self, total_samples: _Optional[int] = ..., steps_per_pass: _Optional[int] = ...) -> None: ...
