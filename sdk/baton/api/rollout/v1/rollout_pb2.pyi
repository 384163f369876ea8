from baton.api.common.v1 import samples_pb2 as _samples_pb2
from baton.api.common.v1 import weights_pb2 as _weights_pb2
from baton.api.rollout.v1 import control_pb2 as _control_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplicaState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_STATE_UNSPECIFIED: _ClassVar[ReplicaState]
    REPLICA_STATE_HEALTHY: _ClassVar[ReplicaState]
    REPLICA_STATE_UPDATING: _ClassVar[ReplicaState]
    REPLICA_STATE_STALE: _ClassVar[ReplicaState]
    REPLICA_STATE_PAUSED: _ClassVar[ReplicaState]
    REPLICA_STATE_ASLEEP: _ClassVar[ReplicaState]
REPLICA_STATE_UNSPECIFIED: ReplicaState
REPLICA_STATE_HEALTHY: ReplicaState
REPLICA_STATE_UPDATING: ReplicaState
REPLICA_STATE_STALE: ReplicaState
REPLICA_STATE_PAUSED: ReplicaState
REPLICA_STATE_ASLEEP: ReplicaState

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Chat(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("group_id", "token_ids", "text", "chat", "continues")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    CONTINUES_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    token_ids: bytes
    text: str
    chat: Chat
    continues: bytes
    def __init__(self, group_id: _Optional[str] = ..., token_ids: _Optional[bytes] = ..., text: _Optional[str] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ..., continues: _Optional[bytes] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("n", "temperature", "top_p", "top_k", "max_new_tokens", "ignore_eos", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "stop", "use_beam_search", "prompt_logprobs")
    N_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    USE_BEAM_SEARCH_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    n: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    ignore_eos: bool
    seed: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    stop: _containers.RepeatedScalarFieldContainer[str]
    use_beam_search: bool
    prompt_logprobs: int
    def __init__(self, n: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., ignore_eos: bool = ..., seed: _Optional[int] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., stop: _Optional[_Iterable[str]] = ..., use_beam_search: bool = ..., prompt_logprobs: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("episode_id", "prompts", "sampling", "exact_version", "min_version", "evaluation")
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    EXACT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    episode_id: int
    prompts: _containers.RepeatedCompositeFieldContainer[Prompt]
    sampling: SamplingParams
    exact_version: int
    min_version: int
    evaluation: bool
    def __init__(self, episode_id: _Optional[int] = ..., prompts: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., exact_version: _Optional[int] = ..., min_version: _Optional[int] = ..., evaluation: bool = ...) -> None: ...

class PromptLogprobs(_message.Message):
    __slots__ = ("group_id", "columns", "token_ids", "logprobs")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    columns: int
    token_ids: bytes
    logprobs: bytes
    def __init__(self, group_id: _Optional[str] = ..., columns: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., logprobs: _Optional[bytes] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("samples", "texts", "prompt_logprobs")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    samples: _samples_pb2.SampleBatch
    texts: _containers.RepeatedScalarFieldContainer[str]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[PromptLogprobs]
    def __init__(self, samples: _Optional[_Union[_samples_pb2.SampleBatch, _Mapping]] = ..., texts: _Optional[_Iterable[str]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[PromptLogprobs, _Mapping]]] = ...) -> None: ...

class MeasurePromptsRequest(_message.Message):
    __slots__ = ("prompts",)
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedCompositeFieldContainer[Prompt]
    def __init__(self, prompts: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ...) -> None: ...

class MeasurePromptsResponse(_message.Message):
    __slots__ = ("lengths",)
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, lengths: _Optional[_Iterable[int]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("state", "policy_version", "weights_digest", "model", "max_model_len", "workers", "running_requests", "generated_tokens", "state_reason", "instance_id", "cache_blocks", "cache_block_tokens", "devices", "model_facts", "ending_update", "base_digest", "adapter_versions")
    class ModelFactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STATE_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    CACHE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CACHE_BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FACTS_FIELD_NUMBER: _ClassVar[int]
    ENDING_UPDATE_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    state: ReplicaState
    policy_version: int
    weights_digest: str
    model: str
    max_model_len: int
    workers: int
    running_requests: int
    generated_tokens: int
    state_reason: str
    instance_id: str
    cache_blocks: int
    cache_block_tokens: int
    devices: _containers.RepeatedScalarFieldContainer[str]
    model_facts: _containers.ScalarMap[str, str]
    ending_update: bool
    base_digest: str
    adapter_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, state: _Optional[_Union[ReplicaState, str]] = ..., policy_version: _Optional[int] = ..., weights_digest: _Optional[str] = ..., model: _Optional[str] = ..., max_model_len: _Optional[int] = ..., workers: _Optional[int] = ..., running_requests: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., state_reason: _Optional[str] = ..., instance_id: _Optional[str] = ..., cache_blocks: _Optional[int] = ..., cache_block_tokens: _Optional[int] = ..., devices: _Optional[_Iterable[str]] = ..., model_facts: _Optional[_Mapping[str, str]] = ..., ending_update: bool = ..., base_digest: _Optional[str] = ..., adapter_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class UpdateWeightsRequest(_message.Message):
    __slots__ = ("policy_version", "group", "first_rank", "timeout_s", "in_flight", "verify", "begin_s")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    FIRST_RANK_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    BEGIN_S_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    group: _weights_pb2.WeightGroup
    first_rank: int
    timeout_s: float
    in_flight: _control_pb2.InFlight
    verify: bool
    begin_s: float
    def __init__(self, policy_version: _Optional[int] = ..., group: _Optional[_Union[_weights_pb2.WeightGroup, _Mapping]] = ..., first_rank: _Optional[int] = ..., timeout_s: _Optional[float] = ..., in_flight: _Optional[_Union[_control_pb2.InFlight, str]] = ..., verify: bool = ..., begin_s: _Optional[float] = ...) -> None: ...

class UpdateWeightsResponse(_message.Message):
    __slots__ = ("weights_digest", "bytes", "phases", "path", "transports", "verified_bytes")
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_BYTES_FIELD_NUMBER: _ClassVar[int]
    weights_digest: str
    bytes: int
    phases: _weights_pb2.PhaseSeconds
    path: _weights_pb2.LoadPath
    transports: _containers.RepeatedScalarFieldContainer[str]
    verified_bytes: int
    def __init__(self, weights_digest: _Optional[str] = ..., bytes: _Optional[int] = ..., phases: _Optional[_Union[_weights_pb2.PhaseSeconds, _Mapping]] = ..., path: _Optional[_Union[_weights_pb2.LoadPath, str]] = ..., transports: _Optional[_Iterable[str]] = ..., verified_bytes: _Optional[int] = ...) -> None: ...

class CommitWeightsRequest(_message.Message):
    __slots__ = ("policy_version", "weights_digest", "timeout_s")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    weights_digest: str
    timeout_s: float
    def __init__(self, policy_version: _Optional[int] = ..., weights_digest: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class CommitWeightsResponse(_message.Message):
    __slots__ = ("policy_version", "pause_s", "load_s")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    PAUSE_S_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    pause_s: float
    load_s: float
    def __init__(self, policy_version: _Optional[int] = ..., pause_s: _Optional[float] = ..., load_s: _Optional[float] = ...) -> None: ...
