"""The interface of adapters that step one environment at a time, in numpy."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from k24lab.envs.base import NO_SCENE, EnvSpec
from k24lab.envs.scene import Scene
from k24lab.errors import ConfigError


@dataclass(frozen=True)
class Row:
    """What one environment returns after a reset or a step: `Step` without its first axis, in numpy."""

    obs: Float[np.ndarray, "N O"]  # padded with zeros to the largest agent's
    state: Float[np.ndarray, " S"]
    avail_actions: Bool[np.ndarray, "N A"]  # at least one per agent
    alive: Bool[np.ndarray, " N"]
    reward: float = 0.0  # of the team
    terminated: bool = False
    truncated: bool = False
    unit_type: Int[np.ndarray, " N"] | None = None  # where spec.n_unit_types > 0
    won: bool | None = None  # where spec.has_win


class SingleEnv(ABC):
    """One cooperative environment.

    All that is random in an episode follows from the seed of its reset and from its actions. It need not care
    about the end: no step follows it before the next reset, and no action that is not available is asked for.
    Processes that an environment starts must end with its own process, in whatever way that ends.
    """

    spec: EnvSpec  # n_envs is not read
    agents: Sequence[str]  # names, for errors

    @abstractmethod
    def reset(self, seed: int) -> Row:
        """Start an episode."""

    @abstractmethod
    def step(self, actions: Int[np.ndarray, " N"]) -> Row:
        """One env step."""

    def scene(self) -> Scene:
        """What the environment looks like now. Raises ConfigError: it cannot be drawn."""
        raise ConfigError(f"{type(self).__name__} {NO_SCENE}")

    def action_name(self, agent: int, action: int) -> str:
        """What an action of an agent is; the default is its number."""
        return str(action)

    def close(self) -> None:
        """Free what it holds, also after an error; the default holds nothing."""
        return
