"""How far apart the agents' masks are, and how far apart they act.

What chance alone gives, for masks and policies drawn independently and uniformly (the reference lines of the figures):

- an entry is kept by a uniform 2:4 mask with probability 3/6 = 1/2, so two independent masks differ in it with
  probability 2 · 1/2 · 1/2 = 1/2: Hamming distance `CHANCE_HAMMING` = 0.5;
- two independent patterns agree with probability 1/6: `CHANCE_SIMILARITY`, also the value of uniform probabilities;
- a pattern drawn anew differs from the last one with probability `CHANCE_FLIP` = 5/6.

Masks are given as [M, ...groups]: one layer [M, out, G], or all layers at once, flattened by `all_layers`, so that an
overall number weighs each layer by its entries. Groups padded on the input side count like any other.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy import special

from k24lab.analysis.load import Patterns
from k24lab.core.pattern_table import N_PATTERNS, PATTERNS_24

CHANCE_HAMMING = 0.5
CHANCE_SIMILARITY = 1 / N_PATTERNS
CHANCE_FLIP = 1 - 1 / N_PATTERNS
MAX_ENTROPY = float(np.log(N_PATTERNS))  # nats, of six equally likely patterns
ALL_LAYERS = "all"

_PATTERNS = np.array(PATTERNS_24, dtype=bool)
# Share of a group's four entries in which two patterns differ: 0, 1/2 (one weight shared) or 1 (none shared).
_PATTERN_DISTANCE = (_PATTERNS[:, None] != _PATTERNS[None]).mean(axis=-1)


def all_layers(layers: Mapping[str, Patterns]) -> Patterns:
    """All layers of a snapshot as one: index [M, groups of all layers], probs [M, groups of all layers, 6]."""
    index = [layer.index.reshape(layer.index.shape[0], -1) for layer in layers.values()]
    probs = [layer.probs.reshape(layer.probs.shape[0], -1, N_PATTERNS) for layer in layers.values()]
    return Patterns(np.concatenate(index, axis=1), np.concatenate(probs, axis=1))


def masks(index: Integer[np.ndarray, "*n out G"]) -> Bool[np.ndarray, "*n out in"]:
    """Masks of 0 and 1 (in = 4 G, padding included)."""
    return _PATTERNS[index].reshape(*index.shape[:-1], -1)


def hamming_distance(index: Integer[np.ndarray, "M *groups"]) -> Float[np.ndarray, "M M"]:
    """Share of the weights' positions that one mask keeps and the other drops: 0 equal, 1 disjoint."""
    flat = index.reshape(index.shape[0], -1)
    return np.stack([_PATTERN_DISTANCE[row, flat].mean(axis=1) for row in flat])


def probability_similarity(probs: Float[np.ndarray, "M *groups 6"]) -> Float[np.ndarray, "M M"]:
    """Mean over groups of π_a · π_b, what the diversity loss lowers; it also falls when probabilities spread out."""
    flat = probs.reshape(probs.shape[0], -1, N_PATTERNS).astype(np.float64)
    return np.einsum("agp,bgp->ab", flat, flat) / flat.shape[1]


def pattern_usage(index: Integer[np.ndarray, "M *groups"]) -> Float[np.ndarray, "M 6"]:
    """Share of each mask's groups that selects each pattern; rows sum to 1."""
    flat = index.reshape(index.shape[0], -1)
    return (flat[..., None] == np.arange(N_PATTERNS)).mean(axis=1)


def pattern_entropy(probs: Float[np.ndarray, "M *groups 6"]) -> Float[np.ndarray, " M"]:
    """Mean over groups of the entropy of π in nats: 0 decided, ln 6 = 1.79 undecided."""
    return special.entr(probs.reshape(probs.shape[0], -1, N_PATTERNS).astype(np.float64)).sum(axis=-1).mean(axis=1)


def flip_rate(
    before: Integer[np.ndarray, "M *groups"], after: Integer[np.ndarray, "M *groups"]
) -> Float[np.ndarray, " M"]:
    """Share of each mask's groups whose selected pattern changed between two snapshots."""
    return (before != after).reshape(before.shape[0], -1).mean(axis=1)


def mean_pair(matrix: Float[np.ndarray, "M M"]) -> float:
    """Mean over the pairs of different agents (the entries off the diagonal); NaN for a single agent."""
    pairs = matrix[~np.eye(len(matrix), dtype=bool)]
    return float(pairs.mean()) if pairs.size else float("nan")


def greedy_actions(
    q_values: Float[np.ndarray, "K S A"], avail_actions: Bool[np.ndarray, "S A"]
) -> Integer[np.ndarray, "K S"]:
    """Best available action of each policy on each observation."""
    return np.where(avail_actions, q_values, -np.inf).argmax(axis=-1)


def action_shares(
    q_values: Float[np.ndarray, "K S A"], avail_actions: Bool[np.ndarray, "S A"]
) -> Float[np.ndarray, "K A"]:
    """How often each policy takes each action, over the same observations; rows sum to 1."""
    greedy = greedy_actions(q_values, avail_actions)
    return (greedy[..., None] == np.arange(q_values.shape[-1])).mean(axis=1)


def greedy_difference(
    q_values: Float[np.ndarray, "K S A"], avail_actions: Bool[np.ndarray, "S A"]
) -> Float[np.ndarray, "K K"]:
    """Share of the observations on which two policies choose different greedy actions."""
    greedy = greedy_actions(q_values, avail_actions)
    return (greedy[:, None] != greedy[None]).mean(axis=-1)


def chance_greedy_difference(avail_actions: Bool[np.ndarray, "S A"]) -> float:
    """`greedy_difference` of two policies that choose among available actions at random: mean of 1 − 1 / available."""
    return float((1 - 1 / avail_actions.sum(axis=-1)).mean())
