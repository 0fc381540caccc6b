"""Tidy tables of masks and policies: what the figures show and their CSV files hold."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer

from k24lab.analysis.load import Patterns, Run, load_patterns, load_policies, variants
from k24lab.analysis.similarity import (
    ALL_LAYERS,
    all_layers,
    flip_rate,
    greedy_difference,
    hamming_distance,
    js_distance,
    masks,
    mean_pair,
    pattern_entropy,
    pattern_usage,
    probability_similarity,
    q_spread,
)
from k24lab.core.pattern_table import PATTERN_NAMES


def snapshot_table(snapshots: Mapping[int, Mapping[str, Patterns]]) -> pd.DataFrame:
    """Means over agents or pairs of agents, per snapshot and layer, and for all layers together (`"all"`).

    Columns t_env (env steps), layer, hamming, similarity (π·π), cosine, entropy (nats) and flip_rate (share of groups
    changed since the snapshot before, NaN for the first).
    """
    rows = []
    previous: dict[str, Patterns] = {}
    for t_env, layers in snapshots.items():
        current = {**layers, ALL_LAYERS: all_layers(layers)}
        for layer, now in current.items():
            before = previous.get(layer)
            row = {
                "hamming": mean_pair(hamming_distance(now.index)),
                "similarity": mean_pair(probability_similarity(now.probs)),
                "cosine": mean_pair(probability_similarity(now.probs, cosine=True)),
                "entropy": float(pattern_entropy(now.probs).mean()),
                "flip_rate": float(flip_rate(before.index, now.index).mean()) if before else float("nan"),
            }
            rows.append({"t_env": t_env, "layer": layer} | row)
        previous = current
    return pd.DataFrame(rows)


def pattern_table(index: Integer[np.ndarray, "M out G"], rows: int, groups: int) -> pd.DataFrame:
    """One line per group of the corner that the maps draw: agent, output, group, pattern (its name)."""
    corner = index[:, :rows, :groups]
    agent, output, group = np.indices(corner.shape)
    names = np.array(PATTERN_NAMES)[corner]
    cells = {"agent": agent, "output": output, "group": group, "pattern": names}
    return pd.DataFrame({name: values.ravel() for name, values in cells.items()})


def owners_table(layers: Mapping[str, Patterns]) -> pd.DataFrame:
    """Share of the weights that n agents keep, per layer: columns layer, n_agents (0..M), share, chance.

    `chance` is the binomial share of M independent masks, C(M, n) / 2^M.
    """
    rows = []
    for layer, patterns in {**layers, ALL_LAYERS: all_layers(layers)}.items():
        n_masks = len(patterns.index)
        flat = patterns.index.reshape(n_masks, 1, -1)
        counts = np.bincount(masks(flat).sum(axis=0).ravel(), minlength=n_masks + 1)
        chance = [math.comb(n_masks, n) / 2**n_masks for n in range(n_masks + 1)]
        for n, (share, expected) in enumerate(zip(counts / counts.sum(), chance, strict=True)):
            rows.append({"layer": layer, "n_agents": n, "share": share, "chance": expected})
    return pd.DataFrame(rows)


def usage_table(layers: Mapping[str, Patterns]) -> pd.DataFrame:
    """Share of the groups that select each pattern: a line per layer and agent, a column per pattern."""
    tables = [
        pd.DataFrame(pattern_usage(patterns.index), columns=list(PATTERN_NAMES)).rename_axis("agent").reset_index()
        for patterns in layers.values()
    ]
    return pd.concat(tables, keys=list(layers), names=["layer", None]).reset_index("layer").reset_index(drop=True)


def pair_table(matrices: Mapping[str, Float[np.ndarray, "K K"]]) -> pd.DataFrame:
    """Matrices over the same agents as one table: agent_a, agent_b and a column per matrix."""
    agent_a, agent_b = np.indices(next(iter(matrices.values())).shape).reshape(2, -1)
    return pd.DataFrame({"agent_a": agent_a, "agent_b": agent_b} | {k: m.ravel() for k, m in matrices.items()})


def run_pairs(runs: Sequence[Run]) -> pd.DataFrame:
    """One line per run and pair of different agents, at the end of training.

    Columns task, method, variant, run, seed, agent_a < agent_b, hamming and similarity (of the masks, all layers; NaN
    for methods without masks), greedy (share of different greedy actions) and js (mean Jensen-Shannon distance of
    softmax(Q / `q_spread`)).
    """
    tables = []
    for run, variant in zip(runs, variants(runs), strict=True):
        policies = load_policies(run)
        acts = (policies.q_values, policies.avail_actions)
        pairs = pair_table(
            _mask_distances(run) | {"greedy": greedy_difference(*acts), "js": js_distance(*acts, q_spread(*acts))}
        )
        pairs = pairs[pairs["agent_a"] < pairs["agent_b"]]
        names = {"task": run.config["task"], "method": run.config["method"], "variant": variant, "run": run.id}
        tables.append(pd.DataFrame(names | {"seed": run.config["seed"]}, index=pairs.index).join(pairs))
    columns = [
        "task",
        "method",
        "variant",
        "run",
        "seed",
        "agent_a",
        "agent_b",
        "hamming",
        "similarity",
        "greedy",
        "js",
    ]
    return pd.concat(tables, ignore_index=True).reindex(columns=columns)


def _mask_distances(run: Run) -> dict[str, np.ndarray]:
    """Hamming distance and probability similarity of the last snapshot; nothing for a run without masks."""
    if not any((run.path / "patterns").glob("[0-9]*.npz")):
        return {}
    (layers,) = load_patterns(run, last_only=True).values()
    end = all_layers(layers)
    return {"hamming": hamming_distance(end.index), "similarity": probability_similarity(end.probs)}
