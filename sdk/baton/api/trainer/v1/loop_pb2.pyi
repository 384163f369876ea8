from baton.api.common.v1 import samples_pb2 as _samples_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LossSpec(_message.Message):
    __slots__ = ("algorithm", "scale", "micro_batch_size")
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    algorithm: str
    scale: float
    micro_batch_size: int
    def __init__(self, algorithm: _Optional[str] = ..., scale: _Optional[float] = ..., micro_batch_size: _Optional[int] = ...) -> None: ...

class ForwardBackwardRequest(_message.Message):
    __slots__ = ("samples", "request_id", "role", "loss", "want_scores")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    WANT_SCORES_FIELD_NUMBER: _ClassVar[int]
    samples: _samples_pb2.SampleBatch
    request_id: str
    role: str
    loss: LossSpec
    want_scores: bool
    def __init__(self, samples: _Optional[_Union[_samples_pb2.SampleBatch, _Mapping]] = ..., request_id: _Optional[str] = ..., role: _Optional[str] = ..., loss: _Optional[_Union[LossSpec, _Mapping]] = ..., want_scores: bool = ...) -> None: ...

class ForwardBackwardResponse(_message.Message):
    __slots__ = ("metrics", "response_tokens", "computed_tokens", "scores")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    METRICS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    metrics: _containers.ScalarMap[str, float]
    response_tokens: int
    computed_tokens: int
    scores: _samples_pb2.Ragged
    def __init__(self, metrics: _Optional[_Mapping[str, float]] = ..., response_tokens: _Optional[int] = ..., computed_tokens: _Optional[int] = ..., scores: _Optional[_Union[_samples_pb2.Ragged, _Mapping]] = ...) -> None: ...

class OptimStepRequest(_message.Message):
    __slots__ = ("request_id", "role", "learning_rate", "weight_decay")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    role: str
    learning_rate: float
    weight_decay: float
    def __init__(self, request_id: _Optional[str] = ..., role: _Optional[str] = ..., learning_rate: _Optional[float] = ..., weight_decay: _Optional[float] = ...) -> None: ...

class OptimStepResponse(_message.Message):
    __slots__ = ("global_step", "grad_norm", "learning_rate", "skipped")
    GLOBAL_STEP_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    global_step: int
    grad_norm: float
    learning_rate: float
    skipped: bool
    def __init__(self, global_step: _Optional[int] = ..., grad_norm: _Optional[float] = ..., learning_rate: _Optional[float] = ..., skipped: bool = ...) -> None: ...
