"""Settings of network, value learning and exploration."""

from dataclasses import dataclass
from typing import Literal

from k24lab.core.config import MaskConfig
from k24lab.methods import get_method

Learner = Literal["q", "nq"]


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Network, value learning and exploration (`k24lab.marl`)."""

    learner: Learner = "q"  # q: 1-step double Q; nq: TD(lambda) double Q with pymarl2's settings
    td_lambda: float = 0.6  # of learner="nq"
    hidden_dim: int = 64
    mixer: Literal["vdn", "qmix", "none"] = "vdn"  # none: independent Q-learning
    mixing_embed_dim: int = 32  # QMIX only
    lr: float = 3e-3
    # Reached linearly at t_max (None: lr is constant); a network that goes on moving goes on flipping masks.
    lr_final: float | None = 0.0
    grad_norm_clip: float = 10.0  # largest norm of the gradients that are clipped together
    # Clip the gradients of what learns at a rate of its own apart from the rest, or all together.
    grad_clip: Literal["groups", "all"] = "groups"
    td_loss: Literal["huber", "mse"] = "huber"  # of the TD error; huber is linear where the error is above 1
    gamma: float = 0.95  # discount factor
    batch_size: int = 32  # episodes
    buffer_size: int = 1000  # episodes; a larger one learns from staler exploration
    target_update: Literal["polyak", "hard"] = "polyak"
    polyak: float = 0.01  # share of the online network per update, with target_update="polyak"
    target_update_interval: int = 200  # updates, with target_update="hard"
    epsilon_start: float = 1.0
    epsilon_finish: float = 0.05
    epsilon_anneal_steps: int = 50_000  # env steps until epsilon_finish is reached
    n_envs: int = 32  # episodes collected side by side
    updates_per_rollout: int = 4  # learner updates after each collection of n_envs episodes


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(MaskConfig, LearnerConfig):
    """All that a learner needs to know."""

    method: str = "k24"
    seed: int = 0
    t_max: int = 128_000  # env steps of the whole training
    device: str = "cpu"

    @property
    def per_type(self) -> bool:
        """Whether masks (or separate networks) belong to unit types, not to agents."""
        return self.mask_per == "type" and get_method(self.method).separate
