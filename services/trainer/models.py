"""The models of one trainer group on this rank, by role."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from baton.config import RunConfig
from baton.config.groups import TrainerGroup
from baton.config.trainable import TrainableConfig
from baton.errors import ConfigError, InvalidRequestError
from services.common.model_store import resolve_model
from services.trainer.megatron.engine import Engine
from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.heads import Head, check_head
from services.trainer.megatron.hosted import HostedModel
from services.trainer.megatron.lora.sharing import WithoutAdapters
from services.trainer.megatron.parallel import Layout
from services.trainer.preflight import PlannedModel, require_memory
from services.trainer.vocabulary import check_vocabulary

ROLES_WITH: Mapping[Head, tuple[str, ...]] = {
    "logprobs": ("ppo_policy", "reference"), "values": ("value", "ppo_value"), "scores": ("reward", "ppo_policy"),
}  # fmt: skip
"""The roles that may have a head; of those that the group hosts, the first is meant where a request names none."""


def head_of(role: str, run: RunConfig) -> Head:
    """What the model of a role makes. A reward model is trained as ppo_policy."""
    if role == "ppo_policy":
        return "scores" if run.algorithm.name == "reward_model" else "logprobs"
    return next(head for head, roles in ROLES_WITH.items() if role in roles)


class Models:
    """Loads every model of the group. A collective."""

    def __init__(self, run: RunConfig, group: TrainerGroup, layout: Layout) -> None:
        """Raises ConfigError for a model that cannot play its role, or has another vocabulary than the policy."""
        self.group, self.layout = group, layout
        self._known = tuple(run.models.roles())
        self.by_role: dict[str, HostedModel] = {}
        directories, planned = {}, {}
        for role, config in group.roles.items():
            if role == "value" and "ppo_value" in group.roles:
                continue  # it is ppo_value's model as it is now
            directory, head = _directory_of(role, run), head_of(role, run)
            if layout.world_rank == 0 and run.model_name(role) != run.model_name("policy"):
                check_vocabulary(role, directory, _directory_of("policy", run))
            if head != "logprobs":
                check_head(directory, role, required=role == "reward")
            directories[role], planned[role] = directory, PlannedModel(config, ModelShape.read(directory), head)
        for role in planned:
            base = None if run.load_of(role) else _base_of(role, group, directories)
            planned[role] = replace(planned[role], base=base)
        require_memory(run, layout, planned)
        for role, directory in directories.items():
            self.by_role[role] = self._load(run, role, directory, planned[role])
        if "value" in group.roles and "value" not in self.by_role:
            self.by_role["value"] = self.by_role["ppo_value"]

    @property
    def trained(self) -> dict[str, Engine]:
        """The models that steps change, ppo_policy first."""
        return {role: model for role, model in self.by_role.items() if isinstance(model, Engine) and role != "value"}

    @property
    def policy(self) -> Engine:
        """ppo_policy. Raises InvalidRequestError if this group does not train it."""
        return self.engine("ppo_policy")

    def engine(self, role: str) -> Engine:
        """A trained model; "" is ppo_policy. Raises InvalidRequestError if this group does not train it."""
        role = role or "ppo_policy"
        if role not in self.trained:
            trains = ", ".join(self.trained) or "nothing"
            raise InvalidRequestError(f"group {self.group.name} trains {trains}, and not {role}; {self._where(role)}")
        return self.trained[role]

    def scoring(self, role: str, head: Head) -> HostedModel:
        """The model that makes `head`; "" is the first one that may. Raises InvalidRequestError if there is none here."""
        candidates = ROLES_WITH[head]
        role = role or next((name for name in candidates if self._makes(name, head)), candidates[0])
        if role not in self.by_role:
            hosts = ", ".join(self.by_role)
            raise InvalidRequestError(f"group {self.group.name} hosts {hosts}, and not {role}; {self._where(role)}")
        if not self._makes(role, head):
            raise InvalidRequestError(f"models.{role} makes {self.by_role[role].head}, and no {head}; ask for another role")
        return self.by_role[role]

    def _load(self, run: RunConfig, role: str, directory: Path, planned: PlannedModel) -> HostedModel:
        config, head, seed, load = planned.config, planned.head, run.runtime.seed, _start_of(role, run)
        share = self.by_role[planned.base] if planned.base else None
        if isinstance(config, TrainableConfig):
            return Engine(
                config, self.layout, directory, run.optimizer_steps, role=role, head=head, seed=seed, load=load, share=share
            )
        if share is not None and share.head == head:
            return WithoutAdapters(share, config)
        return HostedModel(config, self.layout, directory, head=head, seed=seed, role=role, load=load, share=share)

    def _makes(self, role: str, head: Head) -> bool:
        return role in self.by_role and self.by_role[role].head == head

    def _where(self, role: str) -> str:
        if role in self._known:
            return f"ask the group that models.{role}.group names"
        return f"the run file has no models.{role}; the run's roles are {', '.join(self._known)}"


def _directory_of(role: str, run: RunConfig) -> Path:
    return resolve_model(run.model_name(role), revision=run.revision_of(role))


def _base_of(role: str, group: TrainerGroup, directories: Mapping[str, Path]) -> str | None:
    """The role whose weights are also those of `role`: ppo_policy, if both have the same frozen ones and go on having them.
    (A checkpoint of merged weights changes them.)"""
    policy, own = group.roles.get("ppo_policy"), group.roles[role]
    if role == "ppo_policy" or not isinstance(policy, TrainableConfig):
        return None
    trained = [one.lora for one in (policy, own) if isinstance(one, TrainableConfig)]
    frozen = all(lora.enable_lora and lora.checkpoint == "adapter" for lora in trained)
    same = directories[role] == directories["ppo_policy"] and own.dtype == policy.dtype
    return "ppo_policy" if frozen and same else None


def _start_of(role: str, run: RunConfig) -> Path | None:
    """What `models.<role>.load` names."""
    if (name := run.load_of(role)) is None:
        return None
    load = Path(name).expanduser()
    if not load.is_dir():
        raise ConfigError(f"models.{role}.load: {load} is no directory; correct it, or leave it out")
    return load
