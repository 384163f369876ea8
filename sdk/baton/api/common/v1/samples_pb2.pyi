from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_ABORT: _ClassVar[FinishReason]

class RewardStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REWARD_STATUS_UNSPECIFIED: _ClassVar[RewardStatus]
    REWARD_STATUS_VALUE: _ClassVar[RewardStatus]
    REWARD_STATUS_ABSTAIN: _ClassVar[RewardStatus]
    REWARD_STATUS_ERROR: _ClassVar[RewardStatus]
    REWARD_STATUS_TIMEOUT: _ClassVar[RewardStatus]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_ABORT: FinishReason
REWARD_STATUS_UNSPECIFIED: RewardStatus
REWARD_STATUS_VALUE: RewardStatus
REWARD_STATUS_ABSTAIN: RewardStatus
REWARD_STATUS_ERROR: RewardStatus
REWARD_STATUS_TIMEOUT: RewardStatus

class Ragged(_message.Message):
    __slots__ = ("values", "lengths")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    values: bytes
    lengths: bytes
    def __init__(self, values: _Optional[bytes] = ..., lengths: _Optional[bytes] = ...) -> None: ...

class SampleBatch(_message.Message):
    __slots__ = ("size", "sample_ids", "group_ids", "episode_ids", "prompt_ids", "response_ids", "rollout_logprobs", "reference_logprobs", "loss_mask", "rewards", "reward_status", "group_reward_mean", "group_reward_std", "group_sizes", "finish_reasons", "policy_version_min", "policy_version_max", "weights_digests", "temperatures", "metadata", "model_logprobs", "span_versions", "span_tokens", "values", "token_rewards", "uncut_logprobs")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_IDS_FIELD_NUMBER: _ClassVar[int]
    GROUP_IDS_FIELD_NUMBER: _ClassVar[int]
    EPISODE_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_IDS_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOSS_MASK_FIELD_NUMBER: _ClassVar[int]
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    REWARD_STATUS_FIELD_NUMBER: _ClassVar[int]
    GROUP_REWARD_MEAN_FIELD_NUMBER: _ClassVar[int]
    GROUP_REWARD_STD_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZES_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASONS_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_MIN_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_MAX_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURES_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    MODEL_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SPAN_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SPAN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_REWARDS_FIELD_NUMBER: _ClassVar[int]
    UNCUT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    size: int
    sample_ids: _containers.RepeatedScalarFieldContainer[str]
    group_ids: _containers.RepeatedScalarFieldContainer[str]
    episode_ids: bytes
    prompt_ids: Ragged
    response_ids: Ragged
    rollout_logprobs: Ragged
    reference_logprobs: Ragged
    loss_mask: Ragged
    rewards: bytes
    reward_status: bytes
    group_reward_mean: bytes
    group_reward_std: bytes
    group_sizes: bytes
    finish_reasons: bytes
    policy_version_min: bytes
    policy_version_max: bytes
    weights_digests: _containers.RepeatedScalarFieldContainer[str]
    temperatures: bytes
    metadata: _containers.RepeatedScalarFieldContainer[str]
    model_logprobs: Ragged
    span_versions: Ragged
    span_tokens: Ragged
    values: Ragged
    token_rewards: Ragged
    uncut_logprobs: Ragged
    def __init__(self, size: _Optional[int] = ..., sample_ids: _Optional[_Iterable[str]] = ..., group_ids: _Optional[_Iterable[str]] = ..., episode_ids: _Optional[bytes] = ..., prompt_ids: _Optional[_Union[Ragged, _Mapping]] = ..., response_ids: _Optional[_Union[Ragged, _Mapping]] = ..., rollout_logprobs: _Optional[_Union[Ragged, _Mapping]] = ..., reference_logprobs: _Optional[_Union[Ragged, _Mapping]] = ..., loss_mask: _Optional[_Union[Ragged, _Mapping]] = ..., rewards: _Optional[bytes] = ..., reward_status: _Optional[bytes] = ..., group_reward_mean: _Optional[bytes] = ..., group_reward_std: _Optional[bytes] = ..., group_sizes: _Optional[bytes] = ..., finish_reasons: _Optional[bytes] = ..., policy_version_min: _Optional[bytes] = ..., policy_version_max: _Optional[bytes] = ..., weights_digests: _Optional[_Iterable[str]] = ..., temperatures: _Optional[bytes] = ..., metadata: _Optional[_Iterable[str]] = ..., model_logprobs: _Optional[_Union[Ragged, _Mapping]] = ..., span_versions: _Optional[_Union[Ragged, _Mapping]] = ..., span_tokens: _Optional[_Union[Ragged, _Mapping]] = ..., values: _Optional[_Union[Ragged, _Mapping]] = ..., token_rewards: _Optional[_Union[Ragged, _Mapping]] = ..., uncut_logprobs: _Optional[_Union[Ragged, _Mapping]] = ...) -> None: ...
