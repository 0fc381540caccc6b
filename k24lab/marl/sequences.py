"""Whole episodes of unequal length through a network, in blocks of time: rows of those that are over are left out."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from k24lab.core.layers import weighted_abs_sum
from k24lab.marl.agent import RNNAgent, Unrolled, Weights, unroll
from k24lab.marl.replay import EpisodeBatch
from k24lab.marl.rows import FULL, Rows

SHORTEST = 8  # time steps of a block
WORTH_A_CUT = 0.8  # a new block begins where at most this share of the rows is left
BEHIND_RELU = ("rnn_input", "fc3", "fc4")  # layers whose inputs are units with a ReLU


class Block(NamedTuple):
    """Some time steps, and as many rows as the episodes need that still run."""

    steps: slice
    n_rows: int


def blocks(filled: Bool[Tensor, "B T"], rows: Rows) -> list[Block]:
    """Cut T + 1 time steps where enough rows are over; shortest for episodes sorted by length, longest first."""
    n_steps, ends = filled.shape[1] + 1, filled.sum(dim=1).tolist()  # each episode is seen until its end
    total = rows.first(len(ends))

    def needed(t: int) -> int:
        running = max((b + 1 for b, end in enumerate(ends) if end >= t), default=0)
        return min(total, -(-rows.first(running) // FULL) * FULL)

    cuts, start, now = [], 0, needed(0)
    for t in range(SHORTEST, n_steps, SHORTEST):
        if (left := needed(t)) <= WORTH_A_CUT * now:
            cuts.append(Block(slice(start, t), now))
            start, now = t, left
    return [*cuts, Block(slice(start, n_steps), now)]


class Episodes(NamedTuple):
    """A network's Q-values of all agents, and what its layers saw, block by block."""

    q_values: Float[Tensor, "N T1 B A"]  # of no meaning where an episode is over
    blocks: list[tuple[Block, Unrolled]]


def unroll_episodes(
    agent: RNNAgent, weights: Weights, inputs: Float[Tensor, "B T1 N I"], filled: Bool[Tensor, "B T"], rows: Rows
) -> Episodes:
    """Q-values over whole episodes; `rows` sorts the units by network.

    Args:
        agent: gives the first hidden state.
        weights: effective weights.
        inputs: of every unit, time and episode.
        filled: whether a step was played.
    """
    total, parts, done = rows.first(len(filled)), [], []
    hidden: Tensor | None = None
    for block in blocks(filled, rows):
        x = rows.split(inputs[:, block.steps])[..., : block.n_rows]
        hidden = agent.initial_hidden(len(x), block.n_rows) if hidden is None else hidden[..., : block.n_rows]
        unrolled = unroll(weights, x, hidden)
        hidden = unrolled.inputs["fc2"][:, :, -1]
        parts.append(F.pad(unrolled.q_values, (0, total - block.n_rows)))
        done.append((block, unrolled))
    return Episodes(rows.merge(torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]), done)


def played_steps(batch: EpisodeBatch, rows: Rows) -> Float[Tensor, "K T1 R"]:
    """1 for the steps that living units played, by network; else 0."""
    filled = torch.cat([batch.filled, torch.zeros_like(batch.filled[:, :1])], dim=1)  # [B, T+1]
    weight = (filled.unsqueeze(-1) & batch.alive).unsqueeze(-1).to(batch.reward.dtype)  # [B, T+1, N, 1]
    return rows.split(weight).squeeze(1)


def weighted_abs_sums(
    episodes: Episodes, weight: Float[Tensor, "K T1 R"], layers: list[str]
) -> dict[str, Float[Tensor, "K in"]]:
    """Weighted sum of |x| over time and rows of what each named layer saw: the mean where the weights add up to one."""
    sums: dict[str, Tensor] = {}
    for (steps, n_rows), unrolled in episodes.blocks:
        weights = weight[:, steps, :n_rows].flatten(1)
        of_tensor: dict[int, Tensor] = {}  # the GRU's hidden side and fc2 see the same
        for name in layers:
            x = unrolled.inputs[name].detach()
            key = id(unrolled.inputs[name])
            if key not in of_tensor:
                of_tensor[key] = weighted_abs_sum(x.flatten(2), weights)
            sums[name] = sums[name] + of_tensor[key] if name in sums else of_tensor[key]
    return sums


def dead_units(episodes: Episodes, played: Float[Tensor, "K T1 R"]) -> float:
    """Share of the units with a ReLU that are 0 in every step played (1; 0 elsewhere), counted in every network."""
    sums = weighted_abs_sums(episodes, played, list(BEHIND_RELU))
    return (torch.cat([each.flatten() for each in sums.values()]) == 0).float().mean().item()
