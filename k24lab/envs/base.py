"""The interface that every environment is wrapped to: batched, explicit about time limits, never resetting itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from k24lab.envs.scene import Scene
from k24lab.errors import ConfigError

NO_SCENE = (
    "cannot be drawn: its adapter has no scene (rolenav, mpe, mpe2, vmas and smax have one, and environments of "
    "PettingZoo that take render_mode='rgb_array' draw themselves)"
)


@dataclass(frozen=True)
class EnvSpec:
    """Sizes of a task; all that a network or a replay buffer needs to know of it."""

    n_envs: int  # E, episodes that run side by side
    n_agents: int  # N
    obs_dims: tuple[int, ...]  # per agent, before padding
    n_actions: tuple[int, ...]  # per agent, before padding
    state_dim: int
    episode_limit: int  # env steps
    n_unit_types: int = 0  # 0: the environment has no unit types
    unit_type_names: tuple[str, ...] = ()  # one of each type
    has_win: bool = False  # whether Step.won is given
    shortest_episode: int = 1  # env steps: no episode ends earlier
    costly: bool = False  # an environment is a process of its own: a run evaluates in those that it trains in

    def __post_init__(self) -> None:
        for key in ("n_envs", "n_agents", "episode_limit"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} = {getattr(self, key)} must be at least 1")

    @property
    def obs_dim(self) -> int:
        """Observation size after padding with zeros to the largest agent's."""
        return max(self.obs_dims)

    @property
    def action_dim(self) -> int:
        """Number of actions after padding; padded ones are never available."""
        return max(self.n_actions)


@dataclass(frozen=True)
class Step:
    """What E environments return after a reset or a step, as tensors on the environments' device.

    After an environment has ended its rows hold its last observation, zero reward and the same
    `terminated`/`truncated`/`won` until the next reset, so a rollout may go on with the others.
    """

    obs: Float[Tensor, "E N O"]
    state: Float[Tensor, "E S"]
    avail_actions: Bool[Tensor, "E N A"]  # at least one per agent: of those that cannot act it is action 0
    reward: Float[Tensor, " E"]  # of the team
    terminated: Bool[Tensor, " E"]  # the environment ended it: no value follows
    truncated: Bool[Tensor, " E"]  # the time limit ended it: bootstrap from the last observation
    alive: Bool[Tensor, "E N"] | None = None
    unit_type: Int[Tensor, "E N"] | None = None  # as at reset, also when dead
    won: Bool[Tensor, " E"] | None = None


def check_actions(
    actions: Int[Tensor, "E N"], available: Bool[Tensor, "E N A"], ended: Bool[Tensor, " E"], agents: Sequence[str]
) -> None:
    """Refuse an action that is not available; environments that have ended ignore theirs.

    Raises:
        ValueError: naming the environment, the agent, the action and what is allowed.
    """
    in_range = (actions >= 0) & (actions < available.shape[2])
    chosen = available.gather(2, (actions * in_range).long()[..., None])[..., 0]
    legal = in_range & chosen | ended[:, None]
    if not legal.all():
        e, i = (~legal).nonzero()[0].tolist()
        allowed = available[e, i].nonzero().flatten().tolist()
        who = f"environment {e}, agent {agents[i]!r}"
        raise ValueError(f"{who}: action {int(actions[e, i])} is not available (allowed: {allowed})")


class VecEnv(ABC):
    """E copies of a cooperative multi-agent environment."""

    spec: EnvSpec

    @abstractmethod
    def reset(self, seed: int) -> Step:
        """Start E new episodes; their randomness follows from `seed` alone.

        A run passes another seed at each reset, so that a resumed run needs no random state of the environment.
        """

    @abstractmethod
    def step(self, actions: Int[Tensor, "E N"]) -> Step:
        """One step of all E; environments that have ended ignore their actions."""

    def scene(self, e: int) -> Scene:
        """What environment e looks like now: from its reset to the step that ends its episode.

        Raises:
            ConfigError: the environment cannot be drawn.
        """
        raise ConfigError(f"{type(self).__name__} {NO_SCENE}")

    def action_name(self, agent: int, action: int) -> str:
        """What an action of an agent is, in a word or an arrow; the default is its number."""
        return str(action)

    def close(self) -> None:
        """Free processes, windows and files; the default holds none."""
        return


class TaskBuilder(NamedTuple):
    """How the environments of a task are built."""

    build: Callable[..., VecEnv]
    parameters: Mapping[str, Parameter]  # of `build`: n_envs, `workers` and `device` where it takes them, and options
