from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WeightContent(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHT_CONTENT_UNSPECIFIED: _ClassVar[WeightContent]
    WEIGHT_CONTENT_MODEL: _ClassVar[WeightContent]
    WEIGHT_CONTENT_BASE: _ClassVar[WeightContent]
    WEIGHT_CONTENT_ADAPTER: _ClassVar[WeightContent]

class LoadPath(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOAD_PATH_UNSPECIFIED: _ClassVar[LoadPath]
    LOAD_PATH_DIRECT: _ClassVar[LoadPath]
    LOAD_PATH_LOADER: _ClassVar[LoadPath]
WEIGHT_CONTENT_UNSPECIFIED: WeightContent
WEIGHT_CONTENT_MODEL: WeightContent
WEIGHT_CONTENT_BASE: WeightContent
WEIGHT_CONTENT_ADAPTER: WeightContent
LOAD_PATH_UNSPECIFIED: LoadPath
LOAD_PATH_DIRECT: LoadPath
LOAD_PATH_LOADER: LoadPath

class WeightSender(_message.Message):
    __slots__ = ("store_host", "store_port", "tensors", "parts", "members", "storages", "bucket_bytes")
    STORE_HOST_FIELD_NUMBER: _ClassVar[int]
    STORE_PORT_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    STORAGES_FIELD_NUMBER: _ClassVar[int]
    BUCKET_BYTES_FIELD_NUMBER: _ClassVar[int]
    store_host: str
    store_port: int
    tensors: _containers.RepeatedCompositeFieldContainer[WeightTensor]
    parts: _containers.RepeatedCompositeFieldContainer[WeightPart]
    members: _containers.RepeatedScalarFieldContainer[int]
    storages: _containers.RepeatedCompositeFieldContainer[SharedStorage]
    bucket_bytes: int
    def __init__(self, store_host: _Optional[str] = ..., store_port: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[WeightTensor, _Mapping]]] = ..., parts: _Optional[_Iterable[_Union[WeightPart, _Mapping]]] = ..., members: _Optional[_Iterable[int]] = ..., storages: _Optional[_Iterable[_Union[SharedStorage, _Mapping]]] = ..., bucket_bytes: _Optional[int] = ...) -> None: ...

class WeightTensor(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class WeightPart(_message.Message):
    __slots__ = ("tensor", "row_start", "row_end", "column_start", "column_end", "place")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    ROW_START_FIELD_NUMBER: _ClassVar[int]
    ROW_END_FIELD_NUMBER: _ClassVar[int]
    COLUMN_START_FIELD_NUMBER: _ClassVar[int]
    COLUMN_END_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    tensor: int
    row_start: int
    row_end: int
    column_start: int
    column_end: int
    place: SharedPlace
    def __init__(self, tensor: _Optional[int] = ..., row_start: _Optional[int] = ..., row_end: _Optional[int] = ..., column_start: _Optional[int] = ..., column_end: _Optional[int] = ..., place: _Optional[_Union[SharedPlace, _Mapping]] = ...) -> None: ...

class SharedPlace(_message.Message):
    __slots__ = ("storage", "offset", "row_stride")
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ROW_STRIDE_FIELD_NUMBER: _ClassVar[int]
    storage: int
    offset: int
    row_stride: int
    def __init__(self, storage: _Optional[int] = ..., offset: _Optional[int] = ..., row_stride: _Optional[int] = ...) -> None: ...

class SharedStorage(_message.Message):
    __slots__ = ("dtype", "memory_handle", "size_bytes", "offset_bytes", "counter_handle", "counter_offset", "event_handle", "event_sync_required")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_HANDLE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    COUNTER_HANDLE_FIELD_NUMBER: _ClassVar[int]
    COUNTER_OFFSET_FIELD_NUMBER: _ClassVar[int]
    EVENT_HANDLE_FIELD_NUMBER: _ClassVar[int]
    EVENT_SYNC_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    memory_handle: bytes
    size_bytes: int
    offset_bytes: int
    counter_handle: bytes
    counter_offset: int
    event_handle: bytes
    event_sync_required: bool
    def __init__(self, dtype: _Optional[str] = ..., memory_handle: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., counter_handle: _Optional[bytes] = ..., counter_offset: _Optional[int] = ..., event_handle: _Optional[bytes] = ..., event_sync_required: bool = ...) -> None: ...

class WeightGroup(_message.Message):
    __slots__ = ("group_id", "backend", "receivers", "senders", "content", "base_digest", "adapter_multiplier")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    RECEIVERS_FIELD_NUMBER: _ClassVar[int]
    SENDERS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    backend: str
    receivers: int
    senders: _containers.RepeatedCompositeFieldContainer[WeightSender]
    content: WeightContent
    base_digest: str
    adapter_multiplier: float
    def __init__(self, group_id: _Optional[str] = ..., backend: _Optional[str] = ..., receivers: _Optional[int] = ..., senders: _Optional[_Iterable[_Union[WeightSender, _Mapping]]] = ..., content: _Optional[_Union[WeightContent, str]] = ..., base_digest: _Optional[str] = ..., adapter_multiplier: _Optional[float] = ...) -> None: ...

class PhaseSeconds(_message.Message):
    __slots__ = ("gather_s", "wire_s", "load_s", "digest_s", "pause_s", "total_s", "verify_s")
    GATHER_S_FIELD_NUMBER: _ClassVar[int]
    WIRE_S_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    DIGEST_S_FIELD_NUMBER: _ClassVar[int]
    PAUSE_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    VERIFY_S_FIELD_NUMBER: _ClassVar[int]
    gather_s: float
    wire_s: float
    load_s: float
    digest_s: float
    pause_s: float
    total_s: float
    verify_s: float
    def __init__(self, gather_s: _Optional[float] = ..., wire_s: _Optional[float] = ..., load_s: _Optional[float] = ..., digest_s: _Optional[float] = ..., pause_s: _Optional[float] = ..., total_s: _Optional[float] = ..., verify_s: _Optional[float] = ...) -> None: ...
