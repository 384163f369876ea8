from baton.api.common.v1 import weights_pb2 as _weights_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TrainStepRequest(_message.Message):
    __slots__ = ("run_id", "episode_id", "pass_index", "step_index", "buffer_address", "expected_digests", "any_weights")
    class ExpectedDigestsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    PASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    BUFFER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    ANY_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    episode_id: int
    pass_index: int
    step_index: int
    buffer_address: str
    expected_digests: _containers.ScalarMap[int, str]
    any_weights: bool
    def __init__(self, run_id: _Optional[str] = ..., episode_id: _Optional[int] = ..., pass_index: _Optional[int] = ..., step_index: _Optional[int] = ..., buffer_address: _Optional[str] = ..., expected_digests: _Optional[_Mapping[int, str]] = ..., any_weights: bool = ...) -> None: ...

class TrainStepResponse(_message.Message):
    __slots__ = ("global_step", "metrics", "samples", "response_tokens", "computed_tokens")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    GLOBAL_STEP_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    global_step: int
    metrics: _containers.ScalarMap[str, float]
    samples: int
    response_tokens: int
    computed_tokens: int
    def __init__(self, global_step: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., samples: _Optional[int] = ..., response_tokens: _Optional[int] = ..., computed_tokens: _Optional[int] = ...) -> None: ...

class WeightReceiver(_message.Message):
    __slots__ = ("address", "devices", "model_facts", "base_digest")
    class ModelFactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FACTS_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    address: str
    devices: _containers.RepeatedScalarFieldContainer[str]
    model_facts: _containers.ScalarMap[str, str]
    base_digest: str
    def __init__(self, address: _Optional[str] = ..., devices: _Optional[_Iterable[str]] = ..., model_facts: _Optional[_Mapping[str, str]] = ..., base_digest: _Optional[str] = ...) -> None: ...

class OpenWeightGroupRequest(_message.Message):
    __slots__ = ("receivers", "replicas", "content")
    RECEIVERS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    receivers: int
    replicas: _containers.RepeatedCompositeFieldContainer[WeightReceiver]
    content: _weights_pb2.WeightContent
    def __init__(self, receivers: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[WeightReceiver, _Mapping]]] = ..., content: _Optional[_Union[_weights_pb2.WeightContent, str]] = ...) -> None: ...

class OpenWeightGroupResponse(_message.Message):
    __slots__ = ("group", "refused")
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    GROUP_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    group: _weights_pb2.WeightGroup
    refused: _containers.ScalarMap[str, str]
    def __init__(self, group: _Optional[_Union[_weights_pb2.WeightGroup, _Mapping]] = ..., refused: _Optional[_Mapping[str, str]] = ...) -> None: ...

class PublishWeightsRequest(_message.Message):
    __slots__ = ("group_id", "policy_version", "timeout_s", "verify")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    policy_version: int
    timeout_s: float
    verify: bool
    def __init__(self, group_id: _Optional[str] = ..., policy_version: _Optional[int] = ..., timeout_s: _Optional[float] = ..., verify: bool = ...) -> None: ...

class PublishWeightsResponse(_message.Message):
    __slots__ = ("weights_digest", "bytes", "phases")
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    weights_digest: str
    bytes: int
    phases: _weights_pb2.PhaseSeconds
    def __init__(self, weights_digest: _Optional[str] = ..., bytes: _Optional[int] = ..., phases: _Optional[_Union[_weights_pb2.PhaseSeconds, _Mapping]] = ...) -> None: ...

class SaveCheckpointRequest(_message.Message):
    __slots__ = ("directory", "run", "background", "keep")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    directory: str
    run: str
    background: bool
    keep: int
    def __init__(self, directory: _Optional[str] = ..., run: _Optional[str] = ..., background: bool = ..., keep: _Optional[int] = ...) -> None: ...

class SaveCheckpointResponse(_message.Message):
    __slots__ = ("path", "bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    bytes: int
    def __init__(self, path: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class AwaitCheckpointRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class AwaitCheckpointResponse(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class LoadCheckpointRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class LoadCheckpointResponse(_message.Message):
    __slots__ = ("global_step",)
    GLOBAL_STEP_FIELD_NUMBER: _ClassVar[int]
    global_step: int
    def __init__(self, global_step: _Optional[int] = ...) -> None: ...

class ExportModelRequest(_message.Message):
    __slots__ = ("directory",)
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    directory: str
    def __init__(self, directory: _Optional[str] = ...) -> None: ...

class ExportModelResponse(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RoleStatus(_message.Message):
    __slots__ = ("role", "model", "parameters", "trained", "head", "max_sequence_tokens")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    role: str
    model: str
    parameters: int
    trained: bool
    head: str
    max_sequence_tokens: int
    def __init__(self, role: _Optional[str] = ..., model: _Optional[str] = ..., parameters: _Optional[int] = ..., trained: bool = ..., head: _Optional[str] = ..., max_sequence_tokens: _Optional[int] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("model", "global_step", "parameters", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "max_sequence_tokens", "group", "roles")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_STEP_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    DATA_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    model: str
    global_step: int
    parameters: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    max_sequence_tokens: int
    group: str
    roles: _containers.RepeatedCompositeFieldContainer[RoleStatus]
    def __init__(self, model: _Optional[str] = ..., global_step: _Optional[int] = ..., parameters: _Optional[int] = ..., tensor_parallel_size: _Optional[int] = ..., pipeline_parallel_size: _Optional[int] = ..., data_parallel_size: _Optional[int] = ..., max_sequence_tokens: _Optional[int] = ..., group: _Optional[str] = ..., roles: _Optional[_Iterable[_Union[RoleStatus, _Mapping]]] = ...) -> None: ...
