"""`models`: the six roles that a model can have in a run."""

from pydantic import Field

from baton.config.base import Section
from baton.config.policy import PolicyConfig
from baton.config.roles import RoleConfig
from baton.config.trainable import ForwardConfig, TrainableConfig


class ModelsConfig(Section):
    """The models by role. `policy` and `ppo_policy` always exist; the others only if their section does."""

    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """Answers the prompts."""

    ppo_policy: TrainableConfig = Field(default_factory=TrainableConfig)
    """The same model as `policy`, in training."""

    reference: ForwardConfig | None = None
    """Gives the log-probabilities that the policy is kept close to. null: no such model."""

    value: ForwardConfig | None = None
    """Estimates returns during the rollout. null: no such model."""

    ppo_value: TrainableConfig | None = None
    """The same model as `value`, in training. null: no such model."""

    reward: ForwardConfig | None = None
    """Scores responses. null: `rewards` or the engine's flow does."""

    def roles(self) -> dict[str, RoleConfig]:
        """The roles that this run has, by name."""
        return {name: role for name, role in self if role is not None}
