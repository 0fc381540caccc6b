"""Tidy tables of masks and policies: what the figures show and their CSV files hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer

from k24lab.analysis import similarity
from k24lab.analysis.load import Patterns, has_patterns, last_patterns, load_policies, load_summaries
from k24lab.analysis.similarity import ALL_LAYERS, all_layers, hamming_distance, mean_pair, probability_similarity
from k24lab.analysis.stats import final_table, mean_interval
from k24lab.core.pattern_table import PATTERN_NAMES
from k24lab.errors import RunError
from k24lab.lab.find_runs import Run, variants, varying_fields


def snapshot_table(snapshots: Mapping[int, Mapping[str, Patterns]]) -> pd.DataFrame:
    """Means over agents or pairs of agents, per snapshot and layer, and for all layers together (`"all"`).

    Columns t_env (env steps), layer, hamming, similarity (π·π), entropy (nats) and flip_rate (share of groups changed
    since the snapshot before, NaN for the first).
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
                "entropy": float(similarity.pattern_entropy(now.probs).mean()),
                "flip_rate": float(similarity.flip_rate(before.index, now.index).mean()) if before else float("nan"),
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


def pair_table(matrices: Mapping[str, Float[np.ndarray, "K K"]]) -> pd.DataFrame:
    """Matrices over the same agents as one table: agent_a, agent_b and a column per matrix."""
    agent_a, agent_b = np.indices(next(iter(matrices.values())).shape).reshape(2, -1)
    return pd.DataFrame({"agent_a": agent_a, "agent_b": agent_b} | {k: m.ravel() for k, m in matrices.items()})


def run_pairs(runs: Sequence[Run]) -> pd.DataFrame:
    """One line per run and pair of different agents, at the end of training.

    Columns task, method, variant, run, seed, agent_a < agent_b, hamming and similarity (of the masks, all layers; NaN
    for methods without masks) and greedy (share of different greedy actions).
    """
    tables = []
    for run, variant in zip(runs, variants(runs), strict=True):
        matrices = {"greedy": similarity.greedy_difference(*load_policies(run))}
        if has_patterns(run):
            end = all_layers(last_patterns(run))
            matrices |= {"hamming": hamming_distance(end.index), "similarity": probability_similarity(end.probs)}
        pairs = pair_table(matrices).query("agent_a < agent_b")
        config = {name: run.config[name] for name in ("task", "method", "seed")}
        tables.append(pairs.assign(**config, variant=variant, run=run.id))
    columns = ["task", "method", "variant", "run", "seed", "agent_a", "agent_b", "hamming", "similarity"]
    return pd.concat(tables, ignore_index=True).reindex(columns=[*columns, "greedy"])


def _distances(run: Run) -> list[tuple[str, Float[np.ndarray, "M M"]]]:
    """Hamming distances of a run's masks at the end of training, of all layers together and layer by layer."""
    layers = last_patterns(run)
    return [(name, hamming_distance(p.index)) for name, p in {ALL_LAYERS: all_layers(layers), **layers}.items()]


def variant_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One line per variant, best return first: the fields that vary, n seeds, mean return with its 95 % interval.

    Then the mean train-eval gap and the mean Hamming distance of two agents' masks, layer by layer.
    """
    summaries = load_summaries(runs)
    table = final_table(summaries, by=("variant",)).drop(columns="iqm")
    fields = summaries.groupby("variant")[varying_fields(runs)].first()
    means = summaries.groupby("variant")[[name for name in ("train_eval_gap",) if name in summaries]].mean()
    rows = [
        {name: mean_pair(matrix) for name, matrix in _distances(run) if name != ALL_LAYERS} if has_patterns(run) else {}
        for run in runs
    ]
    distances = pd.DataFrame(rows).assign(variant=variants(runs)).groupby("variant").mean()
    joined = table.set_index("variant").join(fields).join(means).join(distances)
    first = [*fields.columns, "n", "mean", "low", "high"]
    return joined[first + [c for c in joined if c not in first]].replace({np.nan: None}).reset_index()


def role_table(runs: Sequence[Run], n_roles: int) -> pd.DataFrame:
    """Mean Hamming distance of the masks of two agents of one role and of different roles, per layer, means over runs.

    Agent i has role i modulo `n_roles`, as in RoleNav. Columns layer ("all" for all together), n (runs), same,
    different, gap (different − same), low, high (95 %). Without a pair of one role and one of two it is a RunError.
    """
    rows = []
    for run in runs:
        for layer, distance in _distances(run):
            role = np.arange(len(distance)) % n_roles
            alike = (role[:, None] == role) & ~np.eye(len(role), dtype=bool)
            if not alike.any() or n_roles < 2:
                raise RunError(f"n_roles = {n_roles} of {len(role)} agents: no pair of one role and one of two roles")
            rows.append((layer, distance[alike].mean(), distance[role[:, None] != role].mean()))
    table: list[tuple[Any, ...]] = []
    for name, pairs in pd.DataFrame(rows, columns=["layer", "same", "different"]).groupby("layer", sort=False):
        gap = mean_interval((pairs["different"] - pairs["same"]).to_numpy())
        means = len(pairs), pairs["same"].mean(), pairs["different"].mean()
        table.append((name, *means, gap.mean.item(), gap.low.item(), gap.high.item()))
    return pd.DataFrame(table, columns=["layer", "n", "same", "different", "gap", "low", "high"])
