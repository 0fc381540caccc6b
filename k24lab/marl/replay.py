"""Episodes: one batch of them, and the buffer that they are replayed from."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from k24lab.envs.base import EnvSpec


@dataclass(frozen=True)
class EpisodeBatch:
    """B episodes of at most T steps; the observation after the last step is kept, so that a time limit bootstraps."""

    obs: Float[Tensor, "B T1 N O"]  # T1 = T + 1
    state: Float[Tensor, "B T1 S"]  # S = 0 where no mixer reads it
    avail_actions: Bool[Tensor, "B T1 N A"]
    alive: Bool[Tensor, "B T1 N"]
    actions: Int[Tensor, "B T N"]
    reward: Float[Tensor, "B T"]
    terminated: Bool[Tensor, "B T"]
    filled: Bool[Tensor, "B T"]  # False: padding after the end of the episode
    unit_type: Int[Tensor, "B N"]  # as at reset; 0 where the environment has no types
    won: Bool[Tensor, " B"]  # False where the environment has no winner

    @property
    def returns(self) -> Float[Tensor, " B"]:
        """Undiscounted team return of each episode."""
        return (self.reward * self.filled).sum(dim=1)

    @property
    def n_steps(self) -> int:
        """Env steps in all episodes together."""
        return int(self.filled.sum())


def concatenate(batches: Sequence[EpisodeBatch]) -> EpisodeBatch:
    """The episodes of several batches of the same length."""
    return EpisodeBatch(**{f.name: torch.cat([getattr(b, f.name) for b in batches]) for f in fields(EpisodeBatch)})


def empty_batch(spec: EnvSpec, n_episodes: int, with_state: bool, device: str = "cpu") -> EpisodeBatch:
    """Storage for `n_episodes` of a task, all zeros, nothing filled."""
    b, t, n = n_episodes, spec.episode_limit, spec.n_agents
    state_dim = spec.state_dim if with_state else 0

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return EpisodeBatch(
        obs=zeros(b, t + 1, n, spec.obs_dim),
        state=zeros(b, t + 1, state_dim),
        avail_actions=zeros(b, t + 1, n, spec.action_dim, dtype=torch.bool),
        alive=zeros(b, t + 1, n, dtype=torch.bool),
        actions=zeros(b, t, n, dtype=torch.int64),
        reward=zeros(b, t),
        terminated=zeros(b, t, dtype=torch.bool),
        filled=zeros(b, t, dtype=torch.bool),
        unit_type=zeros(b, n, dtype=torch.int64),
        won=zeros(b, dtype=torch.bool),
    )


WITH_LAST = frozenset({"obs", "state", "avail_actions", "alive"})  # T + 1 entries
PER_EPISODE = frozenset({"unit_type", "won"})


class ReplayBuffer:
    """The last `capacity` episodes, sampled uniformly without replacement."""

    def __init__(self, spec: EnvSpec, capacity: int, with_state: bool, device: str = "cpu"):
        self.episodes = empty_batch(spec, capacity, with_state, device)
        self.capacity, self.size, self.next = capacity, 0, 0

    def add(self, batch: EpisodeBatch) -> None:
        """Store episodes, overwriting the oldest."""
        n = min(len(batch.reward), self.capacity)
        rows = (torch.arange(n) + self.next) % self.capacity
        for field in fields(EpisodeBatch):
            getattr(self.episodes, field.name)[rows] = getattr(batch, field.name)[:n]
        self.next = (self.next + n) % self.capacity
        self.size = min(self.size + n, self.capacity)

    def sample(self, n_episodes: int, generator: torch.Generator) -> EpisodeBatch:
        """`n_episodes` different ones, the longest first, cut to its length."""
        rows = torch.randperm(self.size, generator=generator)[:n_episodes]
        lengths, order = self.episodes.filled[rows].sum(dim=1).sort(descending=True, stable=True)
        rows, t = rows[order.cpu()], int(lengths[0])
        values = {f.name: getattr(self.episodes, f.name) for f in fields(EpisodeBatch)}
        return EpisodeBatch(
            **{
                name: value[rows] if name in PER_EPISODE else value[rows, : t + (name in WITH_LAST)]
                for name, value in values.items()
            }
        )

    def state_dict(self) -> dict:
        """What is stored, without the empty rest; not copied, for it may be large: write it before more is added."""
        stored = {f.name: getattr(self.episodes, f.name)[: self.size] for f in fields(EpisodeBatch)}
        return {"size": self.size, "next": self.next, "episodes": stored}

    def load_state_dict(self, state: dict) -> None:
        """Take stored episodes back."""
        self.size, self.next = state["size"], state["next"]
        for name, value in state["episodes"].items():
            getattr(self.episodes, name)[: self.size] = value
