from baton.api.common.v1 import samples_pb2 as _samples_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ComputeLogprobsRequest(_message.Message):
    __slots__ = ("samples", "role")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    samples: _samples_pb2.SampleBatch
    role: str
    def __init__(self, samples: _Optional[_Union[_samples_pb2.SampleBatch, _Mapping]] = ..., role: _Optional[str] = ...) -> None: ...

class ComputeLogprobsResponse(_message.Message):
    __slots__ = ("logprobs",)
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprobs: _samples_pb2.Ragged
    def __init__(self, logprobs: _Optional[_Union[_samples_pb2.Ragged, _Mapping]] = ...) -> None: ...

class ComputeValuesRequest(_message.Message):
    __slots__ = ("samples", "role")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    samples: _samples_pb2.SampleBatch
    role: str
    def __init__(self, samples: _Optional[_Union[_samples_pb2.SampleBatch, _Mapping]] = ..., role: _Optional[str] = ...) -> None: ...

class ComputeValuesResponse(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _samples_pb2.Ragged
    def __init__(self, values: _Optional[_Union[_samples_pb2.Ragged, _Mapping]] = ...) -> None: ...

class ComputeScoresRequest(_message.Message):
    __slots__ = ("samples", "role")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    samples: _samples_pb2.SampleBatch
    role: str
    def __init__(self, samples: _Optional[_Union[_samples_pb2.SampleBatch, _Mapping]] = ..., role: _Optional[str] = ...) -> None: ...

class ComputeScoresResponse(_message.Message):
    __slots__ = ("scores",)
    SCORES_FIELD_NUMBER: _ClassVar[int]
    scores: bytes
    def __init__(self, scores: _Optional[bytes] = ...) -> None: ...

class ChatTurn(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class TextRecord(_message.Message):
    __slots__ = ("sample_id", "group_id", "prompt_text", "chat", "completion")
    SAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    sample_id: str
    group_id: str
    prompt_text: str
    chat: _containers.RepeatedCompositeFieldContainer[ChatTurn]
    completion: str
    def __init__(self, sample_id: _Optional[str] = ..., group_id: _Optional[str] = ..., prompt_text: _Optional[str] = ..., chat: _Optional[_Iterable[_Union[ChatTurn, _Mapping]]] = ..., completion: _Optional[str] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("records", "role")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[TextRecord]
    role: str
    def __init__(self, records: _Optional[_Iterable[_Union[TextRecord, _Mapping]]] = ..., role: _Optional[str] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("samples",)
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    samples: _samples_pb2.SampleBatch
    def __init__(self, samples: _Optional[_Union[_samples_pb2.SampleBatch, _Mapping]] = ...) -> None: ...
