"""Batches as networks see them: units sorted into rows of the network that they use, and time cut into blocks.

No weight is gathered per sample: a batch [B, T, N, F] of episodes becomes [K, F, T, R], the rows R of each of K
networks (masks). The rows of a network come in the order of the episodes. Episodes have unequal lengths; a new block of
time steps begins where enough of them are over, and leaves their rows out.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from k24lab.marl.agent import RNNAgent, Unrolled, Weights, unroll
from k24lab.marl.config import TrainingConfig
from k24lab.marl.replay import EpisodeBatch
from k24lab.methods import get_method
from k24lab.ops.linear import weighted_abs_sum

ROW_MULTIPLE = 8  # rows are filled up to a multiple of what a processor handles at once
SHORTEST_BLOCK = 8  # time steps of a block
CUT_AT = 0.8  # a new block begins where at most this share of the rows is left
RELU_INPUTS = ("rnn_input", "fc3", "fc4")  # layers whose inputs are units with a ReLU


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

    def n_rows_for(self, n_episodes: int) -> int:
        """Number of rows of the first episodes."""
        return n_episodes * self.n_agents


class AgentRows:
    """Mask n belongs to agent n: each of the N masks has one row per episode."""

    def split(self, x: Shaped[Tensor, "B T N F"]) -> Shaped[Tensor, "N F T B"]:
        """The inputs of each mask."""
        return x.permute(2, 3, 1, 0).contiguous()

    def merge(self, y: Shaped[Tensor, "N A T B"]) -> Shaped[Tensor, "N T B A"]:
        """The outputs of each agent."""
        return y.permute(0, 2, 3, 1)

    def n_rows_for(self, n_episodes: int) -> int:
        """Number of rows of the first episodes."""
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
        self.n_rows = -(-int(count.max()) // ROW_MULTIPLE) * ROW_MULTIPLE
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

    def n_rows_for(self, n_episodes: int) -> int:
        """Number of rows of the first episodes, of the type that is commonest in them."""
        if n_episodes == self.shape[0]:
            return self.n_rows
        return int(torch.bincount(self._kind[: n_episodes * self.shape[1]], minlength=self.n_types).max())


Rows = SharedRows | AgentRows | TypeRows


def rows_for(config: TrainingConfig, unit_type: Int[Tensor, "B N"], n_masks: int) -> Rows:
    """Which unit of these episodes is seen through which mask (or network)."""
    if not get_method(config.method).separate:
        return SharedRows(unit_type.shape[1])
    return TypeRows(unit_type, n_masks) if config.per_type else AgentRows()


class Block(NamedTuple):
    """Some time steps, and as many rows as the episodes need that still run."""

    steps: slice
    n_rows: int


def blocks(filled: Bool[Tensor, "B T"], rows: Rows) -> list[Block]:
    """Cut T + 1 time steps where enough rows are over; shortest for episodes sorted by length, longest first."""
    n_steps, ends = filled.shape[1] + 1, filled.sum(dim=1).tolist()  # each episode is seen until its end
    total = rows.n_rows_for(len(ends))
    if min(ends) == n_steps - 1:  # nearly always, in tasks without an early end
        return [Block(slice(0, n_steps), total)]

    def needed(t: int) -> int:
        running = max((b + 1 for b, end in enumerate(ends) if end >= t), default=0)
        return min(total, -(-rows.n_rows_for(running) // ROW_MULTIPLE) * ROW_MULTIPLE)

    cuts, start, now = [], 0, needed(0)
    for t in range(SHORTEST_BLOCK, n_steps, SHORTEST_BLOCK):
        if (left := needed(t)) <= CUT_AT * now:
            cuts.append(Block(slice(start, t), now))
            start, now = t, left
    return [*cuts, Block(slice(start, n_steps), now)]


class Episodes(NamedTuple):
    """A network's Q-values of all agents, and what its layers saw, block by block."""

    q_values: Float[Tensor, "N T1 B A"]  # of no meaning where an episode is over
    blocks: list[tuple[Block, Unrolled]]


Sorted = list[tuple[Block, Float[Tensor, "K I _ _"]]]  # inputs by block and network; the first block has all rows


def sort_inputs(inputs: Float[Tensor, "B T1 N I"], filled: Bool[Tensor, "B T"], rows: Rows) -> Sorted:
    """The inputs of every unit, time and episode as networks see them; `filled` says which steps were played."""
    cut = blocks(filled, rows)
    return [(block, rows.split(inputs[:, block.steps])[..., : block.n_rows].contiguous()) for block in cut]


def unroll_episodes(agent: RNNAgent, weights: Weights, inputs: Sorted, rows: Rows) -> Episodes:
    """Q-values over whole episodes.

    Args:
        agent: gives the first hidden state.
        weights: effective weights.
        inputs: from `sort_inputs`; networks that see the same can share them.
        rows: sorts the units by network.
    """
    total, parts, done = inputs[0][0].n_rows, [], []
    hidden: Tensor | None = None
    for block, x in inputs:
        hidden = agent.initial_hidden(len(x), block.n_rows) if hidden is None else hidden[..., : block.n_rows]
        unrolled = unroll(weights, x, hidden)
        hidden = unrolled.hidden
        missing = total - block.n_rows
        parts.append(F.pad(unrolled.q_values, (0, missing)) if missing else unrolled.q_values)
        done.append((block, unrolled))
    return Episodes(rows.merge(torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]), done)


def played_steps(batch: EpisodeBatch, rows: Rows) -> Float[Tensor, "K T1 R"]:
    """1 for the steps that living units played, by network; else 0."""
    filled = torch.cat([batch.filled, torch.zeros_like(batch.filled[:, :1])], dim=1)  # [B, T+1]
    weight = (filled.unsqueeze(-1) & batch.alive).unsqueeze(-1).to(batch.reward.dtype)  # [B, T+1, N, 1]
    return rows.split(weight).squeeze(1)


@torch.no_grad()
def weighted_abs_sums(
    episodes: Episodes, weight: Float[Tensor, "K T1 R"], layers: list[str]
) -> dict[str, Float[Tensor, "K in"]]:
    """Weighted sum of |x| over time and rows of what each named layer saw: the mean where the weights add up to one."""
    sums: dict[str, Tensor] = {}
    for (steps, n_rows), unrolled in episodes.blocks:
        weights = weight[:, steps, :n_rows].flatten(1)
        of_tensor: dict[int, Tensor] = {}  # the GRU's hidden side and fc2 see the same
        for name in layers:
            x = unrolled.inputs[name]
            if id(x) not in of_tensor:
                of_tensor[id(x)] = weighted_abs_sum(x.flatten(2), weights)
            sums[name] = sums[name] + of_tensor[id(x)] if name in sums else of_tensor[id(x)]
    return sums


def dead_units(episodes: Episodes, played: Float[Tensor, "K T1 R"]) -> float:
    """Share of the units with a ReLU that are 0 in every step played (1; 0 elsewhere), counted in every network."""
    sums = weighted_abs_sums(episodes, played, list(RELU_INPUTS))
    return (torch.cat([each.flatten() for each in sums.values()]) == 0).float().mean().item()
