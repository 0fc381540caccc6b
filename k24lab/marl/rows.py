"""Which unit is seen through which mask: a batch sorted by mask, so that no weight is gathered per sample.

The rows of a mask come in the order of the episodes: those of the first episodes are the first rows.
"""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from k24lab.marl.config import TrainingConfig

FULL = 8  # rows of a type are filled up to a multiple of what a processor handles at once


class SharedRows:
    """One network for all: its rows are all agents of all episodes."""

    def __init__(self, n_agents: int):
        self.n_agents = n_agents

    def split(self, x: Shaped[Tensor, "B T N F"]) -> Shaped[Tensor, "1 F T R"]:
        """The inputs of the network."""
        return x.permute(3, 1, 0, 2).flatten(2).unsqueeze(0)

    def merge(self, y: Shaped[Tensor, "1 A T R"]) -> Shaped[Tensor, "N T B A"]:
        """The outputs of each agent."""
        return y.squeeze(0).unflatten(2, (-1, self.n_agents)).permute(3, 1, 2, 0)

    def first(self, n_episodes: int) -> int:
        """How many rows the first episodes fill."""
        return n_episodes * self.n_agents


class AgentRows:
    """Mask n belongs to agent n: each of the N masks has one row per episode."""

    def split(self, x: Shaped[Tensor, "B T N F"]) -> Shaped[Tensor, "N F T B"]:
        """The inputs of each mask."""
        return x.permute(2, 3, 1, 0).contiguous()

    def merge(self, y: Shaped[Tensor, "N A T B"]) -> Shaped[Tensor, "N T B A"]:
        """The outputs of each agent."""
        return y.permute(0, 2, 3, 1)

    def first(self, n_episodes: int) -> int:
        """How many rows the first episodes fill."""
        return n_episodes


class TypeRows:
    """Mask u belongs to unit type u: its rows are all units of the type, in whichever episodes they are.

    Types that are rarer than the commonest one are filled up with rows of zeros, whose outputs nobody reads.

    Args:
        unit_type: of every unit, as at reset.
        n_types: U.
    """

    def __init__(self, unit_type: Int[Tensor, "B N"], n_types: int):
        self.shape = unit_type.shape
        kind = self._kind = unit_type.flatten()
        count = torch.bincount(kind, minlength=n_types)
        self.n_types = n_types
        self.n_rows = -(-int(count.max()) // FULL) * FULL
        order = kind.argsort(stable=True)
        sorted_kind = kind[order]
        rank = torch.arange(len(kind), device=kind.device) - (count.cumsum(0) - count)[sorted_kind]
        row = sorted_kind * self.n_rows + rank
        self._unit_of_row = torch.zeros(n_types * self.n_rows, dtype=torch.int64, device=kind.device)
        self._unit_of_row[row] = order
        self._empty = torch.ones_like(self._unit_of_row, dtype=torch.bool)
        self._empty[row] = False
        self._row_of_unit = torch.empty_like(kind)
        self._row_of_unit[order] = row

    def split(self, x: Shaped[Tensor, "B T N F"]) -> Shaped[Tensor, "U F T R"]:
        """The inputs of each mask."""
        units = x.transpose(1, 2).flatten(0, 1)  # [B N, T, F]
        rows = units[self._unit_of_row].masked_fill_(self._empty[:, None, None], 0)
        return rows.unflatten(0, (self.n_types, self.n_rows)).permute(0, 3, 2, 1).contiguous()

    def merge(self, y: Shaped[Tensor, "U A T R"]) -> Shaped[Tensor, "N T B A"]:
        """The outputs of each agent."""
        units = y.permute(0, 3, 2, 1).flatten(0, 1)[self._row_of_unit]  # [B N, T, A]
        return units.unflatten(0, self.shape).permute(1, 2, 0, 3)

    def first(self, n_episodes: int) -> int:
        """How many rows the first episodes fill, of the type that is commonest in them."""
        if n_episodes == self.shape[0]:
            return self.n_rows
        return int(torch.bincount(self._kind[: n_episodes * self.shape[1]], minlength=self.n_types).max())


Rows = SharedRows | AgentRows | TypeRows


def rows_for(config: TrainingConfig, unit_type: Int[Tensor, "B N"], n_masks: int) -> Rows:
    """Which unit of these episodes is seen through which mask (or network)."""
    if not config.separate:
        return SharedRows(unit_type.shape[1])
    return TypeRows(unit_type, n_masks) if config.per_type else AgentRows()
