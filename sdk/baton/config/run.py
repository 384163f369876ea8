"""RunConfig: the whole run file, validated, with the values that follow from several sections."""

from collections.abc import Mapping
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from baton.config.algorithm import AlgorithmConfig, GrpoConfig, OnlineDpoConfig
from baton.config.base import Section
from baton.config.groups import TrainerGroup, trainer_groups
from baton.config.inert import INERT_OPTIONS, OF_POLICY_ALONE
from baton.config.logging import LoggingConfig
from baton.config.models import ModelsConfig
from baton.config.needs import Offline, Paired
from baton.config.problems import BrokenRules, config_error, from_validation
from baton.config.roles import BUILTIN_MODEL
from baton.config.rules import broken_rules, broken_start_rules
from baton.config.runtime import RuntimeConfig, RuntimeEnvConfig
from baton.config.services import DeadlinesConfig, ServicesConfig, StoreConfig
from baton.config.substitution import escape
from baton.config.task import AppPrompts, JsonlPrompts, PromptConfig, RewardsConfig
from baton.config.yaml_reader import RunFileDumper

# Role -> the roles whose model it has when it names none, the nearest first.
_MODEL_OF = {
    "ppo_policy": ("policy",),
    "reference": ("policy",),
    "value": ("ppo_value", "policy"),
    "ppo_value": ("value", "policy"),
    "reward": ("policy",),
}


def _default_prompts(data: dict[str, Any]) -> PromptConfig:
    """The prompts of a run file without `prompts`: those in `runtime.data_path`, else the user's
    program's."""
    path = data["runtime"].data_path
    return AppPrompts(source="app") if path is None else JsonlPrompts(source="jsonl", path=path)


class RunConfig(Section):
    """One run: what is trained on what, by which services. Immutable; every rule holds for every instance."""

    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    """The episode loop, its batches, relay, and where the run keeps its files."""

    models: ModelsConfig
    """The models by role."""

    runtime_env: RuntimeEnvConfig = Field(default_factory=RuntimeEnvConfig)
    """Accepted for older run files; nothing in it has an effect."""

    algorithm: AlgorithmConfig = Field(default_factory=GrpoConfig)
    """How rewards become a loss."""

    prompts: PromptConfig = Field(default_factory=_default_prompts)
    """What the policy is asked. Left out: the file `runtime.data_path`, else the user's program gives
    prompts."""

    rewards: RewardsConfig = Field(default_factory=RewardsConfig)
    """What answers are worth."""

    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    """Where the metrics go."""

    store: StoreConfig = Field(default_factory=StoreConfig)
    """The server behind the buffer, and the rules of the data in it."""

    services: ServicesConfig = Field(default_factory=ServicesConfig)
    """Addresses of the services."""

    deadlines: DeadlinesConfig = Field(default_factory=DeadlinesConfig)
    """The longest wait for each kind of work."""

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        if problems := broken_rules(self):
            raise BrokenRules(problems)
        return self

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], source: str = "") -> Self:
        """The run that `data`, shaped like a run file, describes; `source` names it in messages.

        Raises ConfigError with one line for each problem. Placeholders, includes and model files are the
        loader's.
        """
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise config_error(from_validation(error, cls), source) from error

    def to_yaml(self) -> str:
        """A run file, complete in itself, that loads as this run; options left at their defaults are left
        out."""
        tree = escape(self.model_dump(mode="json", exclude_unset=True))
        return yaml.dump(tree, Dumper=RunFileDumper, sort_keys=False)

    @property
    def is_offline(self) -> bool:
        """Whether the answers are given: nothing is rolled out, and no weights are published."""
        return isinstance(self.algorithm, Offline)

    @property
    def rollout_replicas(self) -> int:
        """Rollout engines of the run: none if the answers are given."""
        return 0 if self.is_offline else self.models.policy.replicas

    @property
    def prompts_per_episode(self) -> int:
        """Different prompts in one episode, each with several answers if repeated or paired."""
        return self.prompts_of(self.runtime.sample_per_episode)

    def prompts_of(self, samples: int) -> int:
        """How many prompts so many of `runtime.sample_per_episode` are made of."""
        return samples // (self.group_size // self.models.policy.n)

    def samples_of(self, prompts: int) -> int:
        """How many of `runtime.sample_per_episode` so many prompts make."""
        return prompts * (self.group_size // self.models.policy.n)

    @property
    def group_size(self) -> int:
        """Responses to one prompt in one episode."""
        if isinstance(self.algorithm, Paired):
            return 2
        return self.runtime.num_inference_per_prompt * self.models.policy.n

    @property
    def samples_per_unit(self) -> int:
        """Consecutive samples that the algorithm compares with each other, so that nothing may divide them."""
        return self.group_size if isinstance(self.algorithm, Paired | OnlineDpoConfig) else 1

    def trainer_groups(self) -> dict[str, TrainerGroup]:
        """The torchrun groups that hold the trainer's roles, by name; the first is `trainer`."""
        return trainer_groups(self)

    def in_prompt_order(self, episode_id: int) -> bool:
        """Whether the default flow puts the groups of this episode in the order of their prompts, and not as
        they come: relay has no use for a part of an episode, and `ranking` must not change what is trained."""
        return self.runtime.relays(episode_id) or self.models.policy.batch_generation.ranking

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run, if every episode makes `sample_per_episode` * n samples."""
        runtime = self.runtime
        steps = -(-runtime.sample_per_episode * self.models.policy.n // runtime.global_batch_size)
        return runtime.num_episode * runtime.num_training_epoch * steps

    def model_name(self, role: str) -> str:
        """Directory, hub id or built-in name of the model of `role`, which need not name one itself."""
        roles = self.models.roles()
        for name in (role, *_MODEL_OF.get(role, ())):
            if name in roles and (model := roles[name].model) is not None:
                return model
        return self.models.policy.tokenizer or BUILTIN_MODEL

    def revision_of(self, role: str) -> str | None:
        """Branch, tag or commit of the model of `role` on the hub; None: the default one. The policy's holds for its model
        in every role."""
        return self.models.policy.revision if self.model_name(role) == self.model_name("policy") else None

    def load_of(self, role: str) -> str | None:
        """Directory of the checkpoint that the model of `role` starts from; None: its `model`. A reference that is the
        policy's model, and value, which is ppo_value's, start from where the trained model does unless they name another."""
        roles = self.models.roles()
        trained = {"reference": "ppo_policy", "value": "ppo_value"}.get(role)
        follows = trained in roles and not {"load", "model"} & roles[role].model_fields_set
        return roles[trained].load if follows else roles[role].load

    def dtype_name(self, role: str) -> str:
        """Number format of `role`. A reference that is the policy's model, and value, which is ppo_value's, have that of the
        trained model unless they name another: two formats of the same weights do not say the same."""
        roles = self.models.roles()
        trained = {"reference": "ppo_policy", "value": "ppo_value"}.get(role)
        follows = trained in roles and "dtype" not in roles[role].model_fields_set
        if follows and self.model_name(role) == self.model_name(trained):
            return roles[trained].dtype
        return roles[role].dtype

    def tokenizer_name(self, role: str) -> str | None:
        """Directory or hub id of the tokenizer of `role`; None: its model's own. The policy's holds for its model in
        every role."""
        is_policy = self.model_name(role) == self.model_name("policy")
        return self.models.roles()[role].tokenizer or (self.models.policy.tokenizer if is_policy else None)

    def tokenizer_revision(self, role: str) -> str | None:
        """Branch, tag or commit of the tokenizer of `role` on the hub; None: the default one."""
        policy = self.models.policy
        return policy.tokenizer_revision if self.tokenizer_name(role) == policy.tokenizer else None

    def generation_batch_size(self, role: str) -> int:
        """Prompts in one request to `role`; never more than an episode gives each of its replicas."""
        model = self.models.roles()[role]
        size = model.generation_batch_size if model.generation_batch_size > 0 else self.runtime.generation_batch_size
        return max(1, min(size, self.runtime.sample_per_episode // model.num_replica))

    @property
    def prompts_per_request(self) -> int:
        """Prompts in one request to a rollout replica at most. With `ranking`, those of one static batch."""
        if self.models.policy.batch_generation.ranking:
            return max(1, self.models.policy.batch_rows // self.group_size)
        return self.generation_batch_size("policy")

    def engine_seed(self, replica: int) -> int:
        """Seed of rollout replica `replica`."""
        policy = self.models.policy
        seed = self.runtime.seed if policy.seed is None else policy.seed
        return seed + replica if policy.apply_replica_id_to_seed else seed

    def inert_options(self) -> dict[str, str]:
        """The options that were set but do nothing: dotted path -> reason."""
        sections: dict[str, Section] = {"runtime": self.runtime, "runtime_env": self.runtime_env}
        sections |= {f"models.{name}": role for name, role in self.models.roles().items()}
        found: dict[str, str] = {}
        for prefix, section in sections.items():
            anywhere = "models.*" if prefix.startswith("models.") else prefix
            elsewhere = OF_POLICY_ALONE if anywhere == "models.*" and prefix != "models.policy" else {}
            for name in type(section).model_fields:
                paths = f"{prefix}.{name}", f"{anywhere}.{name}"
                reason = next((INERT_OPTIONS[path] for path in paths if path in INERT_OPTIONS), elsewhere.get(name))
                if reason and name in section.model_fields_set:
                    found[f"{prefix}.{name}"] = reason
        return found

    def remarks(self) -> list[str]:
        """What whoever starts the run should know: options that do nothing, and what has the policy begin elsewhere than
        the model that it is compared with."""
        lines = [f"{option} has no effect: {reason}" for option, reason in self.inert_options().items()]
        for name, role in self.models.roles().items():
            if name.startswith("ppo_") and {"enable_lora"} < role.lora.model_fields_set and not role.lora.enable_lora:
                lines.append(
                    f"models.{name}.lora.enable_lora is false: all weights are trained, and the section's other options "
                    "have no effect"
                )
        others = {"reference": "the divergence from it does not begin at zero"} if self.models.reference else {}
        if not self.is_offline:
            others["policy"] = "it samples from other probabilities than those that are trained"
        trained = self.dtype_name("ppo_policy")
        for role, so in others.items():
            if self.model_name(role) == self.model_name("ppo_policy") and (dtype := self.dtype_name(role)) != trained:
                lines.append(f"models.{role}.dtype is {dtype}, and models.ppo_policy.dtype {trained}: {so}")
        if self._reference_lacks_adapter():
            lines.append(
                f"models.ppo_policy.lora.load: models.reference is the model without this adapter: {others['reference']}; "
                "name the two merged by models.reference.load, as the export of the run that trained the adapter"
            )
        return lines

    def _reference_lacks_adapter(self) -> bool:
        """Whether the policy starts from an adapter, and the reference from the model below it."""
        lora = self.models.ppo_policy.lora
        if self.models.reference is None or not (lora.enable_lora and lora.load):
            return False
        return self.model_name("reference") == self.model_name("ppo_policy") and self.load_of("reference") is None

    def require_startable(self, *, has_relay_sample_fn: bool = False) -> None:
        """Raises ConfigError if the run could load but not train: what only matters once it starts.

        `has_relay_sample_fn` says that the user's program gave the engine a relay function.
        """
        if problems := broken_start_rules(self, has_relay_sample_fn):
            raise config_error(problems)
