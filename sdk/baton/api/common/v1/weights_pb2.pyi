from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WeightSender(_message.Message):
    __slots__ = ("store_host", "store_port", "tensors")
    STORE_HOST_FIELD_NUMBER: _ClassVar[int]
    STORE_PORT_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    store_host: str
    store_port: int
    tensors: _containers.RepeatedCompositeFieldContainer[WeightTensor]
    def __init__(self, store_host: _Optional[str] = ..., store_port: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[WeightTensor, _Mapping]]] = ...) -> None: ...

class WeightTensor(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class WeightGroup(_message.Message):
    __slots__ = ("group_id", "backend", "receivers", "bucket_bytes", "senders")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    RECEIVERS_FIELD_NUMBER: _ClassVar[int]
    BUCKET_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENDERS_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    backend: str
    receivers: int
    bucket_bytes: int
    senders: _containers.RepeatedCompositeFieldContainer[WeightSender]
    def __init__(self, group_id: _Optional[str] = ..., backend: _Optional[str] = ..., receivers: _Optional[int] = ..., bucket_bytes: _Optional[int] = ..., senders: _Optional[_Iterable[_Union[WeightSender, _Mapping]]] = ...) -> None: ...

class PhaseSeconds(_message.Message):
    __slots__ = ("gather_s", "wire_s", "load_s", "digest_s", "pause_s")
    GATHER_S_FIELD_NUMBER: _ClassVar[int]
    WIRE_S_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    DIGEST_S_FIELD_NUMBER: _ClassVar[int]
    PAUSE_S_FIELD_NUMBER: _ClassVar[int]
    gather_s: float
    wire_s: float
    load_s: float
    digest_s: float
    pause_s: float
    def __init__(self, gather_s: _Optional[float] = ..., wire_s: _Optional[float] = ..., load_s: _Optional[float] = ..., digest_s: _Optional[float] = ..., pause_s: _Optional[float] = ...) -> None: ...
