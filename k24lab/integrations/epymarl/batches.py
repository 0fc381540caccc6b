"""A checkout's batch of episodes in k24lab's form."""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from k24lab.integrations.epymarl.settings import Settings, UnitTypes
from k24lab.marl.replay import EpisodeBatch


@runtime_checkable
class TheirBatch(Protocol):
    """What is used of their class: `batch["obs"]` [B, T1, N, O] and the like."""

    def __getitem__(self, key: str) -> Any: ...


def observations(batch: TheirBatch, start: int, stop: int, last_action: bool) -> Float[Tensor, "B T N O"]:
    """What agents see at the time steps from `start` to `stop`, with `last_action` followed by its one-hot."""
    obs = batch["obs"][:, start:stop].float()
    if not last_action:
        return obs
    onehot = batch["actions_onehot"]
    before = onehot[:, max(start - 1, 0) : stop - 1]
    if start == 0:  # nothing was done before the first step
        before = torch.cat([torch.zeros_like(onehot[:, :1]), before], dim=1)
    return torch.cat([obs, before.float()], dim=-1)


def types_at_reset(batch: TheirBatch, unit_types: UnitTypes | None) -> Int[Tensor, "B N"]:
    """The type of every unit for the whole episode; 0 for a unit that is dead from the start, or without types."""
    obs = batch["obs"][:, 0]
    if unit_types is None:
        return torch.zeros(obs.shape[:2], dtype=torch.int64, device=obs.device)
    return unit_types.bits(obs).long().argmax(dim=-1)


def alive(batch: TheirBatch, unit_types: UnitTypes | None) -> Bool[Tensor, "B T1 N"]:
    """Units that count: those that show a type; without types those that see something or have a choice."""
    if unit_types is not None:
        return unit_types.bits(batch["obs"]).any(dim=-1)
    return batch["obs"].bool().any(dim=-1) | ((batch["avail_actions"] > 0).sum(dim=-1) > 1)


def to_episodes(batch: TheirBatch, settings: Settings) -> EpisodeBatch:
    """The same episodes, the longest first, so that an unroll can leave out those that are over.

    Their buffer marks the observation behind a terminal step as filled too; it is no step that was played.
    """
    terminated = batch["terminated"][:, :-1, 0].bool()
    filled = batch["filled"][:, :-1, 0].bool()
    filled = torch.cat([filled[:, :1], filled[:, 1:] & ~terminated[:, :-1]], dim=1)
    order = filled.sum(dim=1).argsort(descending=True, stable=True)
    unit_type = types_at_reset(batch, settings.unit_types)
    values = {
        "obs": observations(batch, 0, batch["obs"].shape[1], settings.last_action),
        "state": batch["state"].flatten(2).float(),
        "avail_actions": batch["avail_actions"] > 0,
        "alive": alive(batch, settings.unit_types),
        "actions": batch["actions"][:, :-1, :, 0].long(),
        "reward": batch["reward"][:, :-1, 0].float(),
        "terminated": terminated,
        "filled": filled,
        "unit_type": unit_type,
        "won": torch.zeros_like(order, dtype=torch.bool),  # their runner knows and logs it
    }
    return EpisodeBatch(**{name: value[order] for name, value in values.items()})
