"""Where a method pays: runs of one world under several regimes (widths, team sizes, shared roles), side by side."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from k24lab.analysis.aggregate import area_under_curve, probability_of_improvement
from k24lab.analysis.load import Run, load_metrics, load_patterns, load_summaries
from k24lab.analysis.paper import RETURN
from k24lab.analysis.similarity import all_layers, hamming_distance
from k24lab.analysis.stats import long_table, mean_interval
from k24lab.errors import RunError, unknown

# Mean height of a run's learning curve: how early it learned, and how much.
OVER_TRAINING = "test_return_over_training"


def load_regimes(runs: Sequence[Run], fields: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics and summaries of runs in which a regime, a task with values of `fields`, takes the place of the task.

    Variants are named within their regime, so that `k24` at two widths is the same method in two regimes. Summaries
    also have `OVER_TRAINING`.

    Raises:
        RunError: a field that is no part of a configuration.
    """
    regimes: dict[str, list[Run]] = {}
    for run in runs:
        for field in fields:
            if field not in run.config:
                raise RunError(unknown("parameter", field, run.config))
        name = ", ".join([str(run.config["task"]), *(f"{field}={run.config[field]}" for field in fields)])
        regimes.setdefault(name, []).append(run)
    metrics, summaries = (
        pd.concat([load(members).assign(task=name) for name, members in regimes.items()], ignore_index=True)
        for load in (load_metrics, load_summaries)
    )
    return metrics, summaries.merge(_over_training(metrics), on=["task", "run"], how="left")


def _over_training(metrics: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (task, run), evaluations in metrics.dropna(subset=[RETURN]).groupby(["task", "run"], sort=False):
        curve = evaluations.groupby("t_env")[RETURN].mean()
        rows.append((task, run, area_under_curve(curve.index.to_numpy(), curve.to_numpy(dtype=float))))
    return pd.DataFrame(rows, columns=["task", "run", OVER_TRAINING])


def both_measures(table: Callable[..., pd.DataFrame], summaries: pd.DataFrame, reference: str) -> pd.DataFrame:
    """A table of differences of the final returns, and below it of the means `OVER_TRAINING`: a column `measure` first.

    `table` is `stats.difference_table`, `stats.paired_table` or `improvement_table`.
    """
    measures = {"final": RETURN, "over training": OVER_TRAINING}
    return long_table({name: table(summaries, reference, value) for name, value in measures.items()}, "measure")


def improvement_table(summaries: pd.DataFrame, reference: str, value: str = RETURN) -> pd.DataFrame:
    """Per task, how likely a run of every other variant beats one of the variant `reference`, in `value`.

    Where single runs fail it says more than a difference of means. Columns task, variant, n, n_reference, probability,
    low, high; tasks without the reference are left out.
    """
    rows = []
    for task, runs in summaries.dropna(subset=[value]).groupby("task", sort=False):
        returns = {name: group[value].to_numpy(dtype=float) for name, group in runs.groupby("variant", sort=False)}
        if reference not in returns:
            continue
        base = returns.pop(reference)
        for name, ours in returns.items():
            rows.append((task, name, ours.size, base.size, *probability_of_improvement([ours], [base])))
    return pd.DataFrame(rows, columns=["task", "variant", "n", "n_reference", "probability", "low", "high"])


def role_distances(runs: Sequence[Run], n_roles: int) -> pd.DataFrame:
    """Mean Hamming distance of the masks of two agents, per run and layer: of one role, and of different roles.

    Agent i has role i modulo `n_roles`, as in RoleNav. Columns run, seed, layer ("all" for all together), same,
    different.

    Raises:
        RunError: no two agents of one role, or no two roles.
    """
    rows = []
    for run in runs:
        (layers,) = load_patterns(run, last_only=True).values()
        for name, patterns in {"all": all_layers(layers), **layers}.items():
            distance = hamming_distance(patterns.index)
            role = np.arange(len(distance)) % n_roles
            alike = (role[:, None] == role) & ~np.eye(len(role), dtype=bool)
            if not alike.any() or n_roles < 2:
                raise RunError(f"n_roles = {n_roles} of {len(role)} agents: no pair of one role and one of two roles")
            different = distance[role[:, None] != role].mean()
            rows.append((run.id, run.config["seed"], name, distance[alike].mean(), different))
    return pd.DataFrame(rows, columns=["run", "seed", "layer", "same", "different"])


def role_table(distances: pd.DataFrame) -> pd.DataFrame:
    """Per layer, means over runs: columns layer, n, same, different, gap (different − same), low, high (95 %)."""
    rows = []
    for layer, runs in distances.groupby("layer", sort=False):
        gap = mean_interval((runs["different"] - runs["same"]).to_numpy())
        means = runs["same"].mean(), runs["different"].mean()
        rows.append((layer, len(runs), *means, gap.mean.item(), gap.low.item(), gap.high.item()))
    return pd.DataFrame(rows, columns=["layer", "n", "same", "different", "gap", "low", "high"])
