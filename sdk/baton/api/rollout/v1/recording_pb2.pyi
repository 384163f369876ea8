from baton.api.common.v1 import samples_pb2 as _samples_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerResponse(_message.Message):
    __slots__ = ("port",)
    PORT_FIELD_NUMBER: _ClassVar[int]
    port: int
    def __init__(self, port: _Optional[int] = ...) -> None: ...

class ListRecordedRequest(_message.Message):
    __slots__ = ("group_ids", "episode_id")
    GROUP_IDS_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    group_ids: _containers.RepeatedScalarFieldContainer[str]
    episode_id: int
    def __init__(self, group_ids: _Optional[_Iterable[str]] = ..., episode_id: _Optional[int] = ...) -> None: ...

class ListRecordedResponse(_message.Message):
    __slots__ = ("samples", "texts")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    samples: _samples_pb2.SampleBatch
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, samples: _Optional[_Union[_samples_pb2.SampleBatch, _Mapping]] = ..., texts: _Optional[_Iterable[str]] = ...) -> None: ...

class ForgetRecordedRequest(_message.Message):
    __slots__ = ("sample_ids",)
    SAMPLE_IDS_FIELD_NUMBER: _ClassVar[int]
    sample_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sample_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ForgetRecordedResponse(_message.Message):
    __slots__ = ("samples",)
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    samples: int
    def __init__(self, samples: _Optional[int] = ...) -> None: ...
