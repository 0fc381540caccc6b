"""From the runs of several tasks to what a paper shows: scores on one scale, curves over the budget, tables."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from k24lab.analysis.aggregate import (
    aggregate_table,
    area_under_curve,
    efficiency_curve,
    normalised,
    performance_profile,
    probability_of_improvement,
)
from k24lab.errors import RunError, unknown

Scale = Mapping[str, tuple[float, float]]  # task -> the returns that count as 0 and as 1
Scores = dict[str, dict[str, np.ndarray]]  # variant -> task -> one score per run
RETURN = "test_return_mean"
SHARES = np.linspace(0.0, 1.0, 41)  # of the env steps of a task
THRESHOLDS = np.linspace(-0.2, 1.2, 71)


def task_scale(
    metrics: pd.DataFrame, summaries: pd.DataFrame, given: Mapping[str, Sequence[float]] | None = None
) -> dict[str, tuple[float, float]]:
    """What counts as 0 and 1 in each task: the untrained networks' mean return, and the best variant's final mean.

    `given` replaces the scale of the tasks that it names.

    Raises:
        RunError: a task in `given` that has no runs, or not two numbers for it; a task whose scale does not rise.
    """
    given = given or {}
    for task, pair in given.items():
        if len(pair) != 2:
            raise RunError(f"scale of {task!r} = {list(pair)}: must be two returns, those that count as 0 and as 1")
    tasks = summaries["task"].unique()
    for task in given.keys() - set(tasks):
        raise RunError(unknown("task", task, tasks))
    curves = metrics.dropna(subset=[RETURN])
    first = curves.sort_values("t_env").groupby(["task", "run"])[RETURN].first().groupby("task").mean()
    best = summaries.groupby(["task", "variant"])[RETURN].mean().groupby("task").max()
    scale = {}
    for task in map(str, tasks):
        low, high = map(float, given.get(task, (first[task], best[task])))
        if not low < high:
            raise RunError(
                f"{task}: a return of {low:.4g} would count as 0 and {high:.4g} as 1, but must rise: give both returns "
                f"as scale[{task!r}]" + ("" if task in given else ", or leave out a task in which nothing is learned")
            )
        scale[task] = (low, high)
    return scale


def final_scores(summaries: pd.DataFrame, scale: Scale) -> Scores:
    """Final test returns on the scale, of every variant and task."""
    return {
        variant: {task: normalised(returns, *scale[task]) for task, returns in by_task.items()}
        for variant, by_task in _raw(summaries).items()
    }


def curve_scores(metrics: pd.DataFrame, scale: Scale) -> Scores:
    """Mean heights of the learning curves on the scale: how early a run learned, and how much."""
    scores: dict[str, dict[str, list[float]]] = {}
    for variant, task, _, curve in _curves(metrics, scale):
        height = area_under_curve(curve.index.to_numpy(), curve.to_numpy())
        scores.setdefault(variant, {}).setdefault(task, []).append(height)
    return {variant: {task: np.array(x) for task, x in tasks.items()} for variant, tasks in scores.items()}


def _curves(metrics: pd.DataFrame, scale: Scale) -> Iterator[tuple[str, str, int, pd.Series]]:
    """Variant, task, t_max and curve (on the scale, over env steps) of every run."""
    for keys, run in metrics.dropna(subset=[RETURN]).groupby(["variant", "task", "run"], sort=False):
        variant, task, _ = map(str, keys)
        curve = run.groupby("t_env")[RETURN].mean()
        scaled = pd.Series(normalised(curve.to_numpy(dtype=float), *scale[task]), curve.index)
        yield variant, task, int(run["t_max"].iloc[0]), scaled


def complete(scores: Scores, tasks: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """The variants with runs in all tasks, their scores in the order of the tasks; others have no aggregate.

    Raises:
        RunError: there is none.
    """
    whole = {v: [by_task[task] for task in tasks] for v, by_task in scores.items() if set(tasks) <= by_task.keys()}
    if not whole:
        there = "; ".join(f"{variant} in {', '.join(by_task)}" for variant, by_task in scores.items())
        raise RunError(f"no variant has finished runs in all of {', '.join(tasks)} (there are: {there})")
    return whole


def incomplete(variant: str, others: Iterable[str]) -> str:
    """What is wrong with a variant that lacks runs, and which do not."""
    return f"variant {variant!r} does not have runs in all tasks; those that have: {', '.join(others)}"


def complete_variants(summaries: pd.DataFrame) -> list[str]:
    """The variants that can be compared over all tasks.

    Raises:
        RunError: there is none.
    """
    return list(complete(_raw(summaries), list(summaries["task"].unique())))


def _raw(summaries: pd.DataFrame) -> Scores:
    """Final test returns of every variant and task."""
    scores: Scores = {}
    for keys, runs in summaries.dropna(subset=[RETURN]).groupby(["variant", "task"], sort=False):
        variant, task = map(str, keys)
        scores.setdefault(variant, {})[task] = runs[RETURN].to_numpy(dtype=float)
    return scores


def run_counts(summaries: pd.DataFrame) -> pd.DataFrame:
    """How many finished runs every variant has in every task: what is missing is seen, not guessed."""
    counts = summaries.dropna(subset=[RETURN]).groupby(["variant", "task"], sort=False).size()
    return counts.unstack("task", fill_value=0).reset_index().rename_axis(columns=None)


def aggregates(metrics: pd.DataFrame, summaries: pd.DataFrame, scale: Scale) -> pd.DataFrame:
    """Aggregates over tasks with their intervals: `aggregate_table` of the final scores, and the area under the curve.

    Columns variant, aggregate, n_tasks, n_runs, value, low, high.
    """
    tasks = list(scale)
    final = aggregate_table(complete(final_scores(summaries, scale), tasks))
    area = aggregate_table(complete(curve_scores(metrics, scale), tasks))
    area = area[area["aggregate"] == "mean"].assign(aggregate="area under curve")
    return pd.concat([final, area], ignore_index=True)


def profiles(summaries: pd.DataFrame, scale: Scale) -> pd.DataFrame:
    """Performance profile of every complete variant: columns variant, threshold, share, low, high."""
    scores = complete(final_scores(summaries, scale), list(scale))
    return _stacked({variant: performance_profile(given, THRESHOLDS) for variant, given in scores.items()})


def efficiency(metrics: pd.DataFrame, scale: Scale) -> pd.DataFrame:
    """IQM over runs and tasks against the share of each task's env steps: columns variant, budget, iqm, low, high."""
    curves: dict[str, dict[str, list[np.ndarray]]] = {}
    for variant, task, t_max, curve in _curves(metrics, scale):
        heights = np.interp(SHARES * t_max, curve.index, curve)
        curves.setdefault(variant, {}).setdefault(task, []).append(heights)
    stacked = {v: {task: np.stack(each) for task, each in by_task.items()} for v, by_task in curves.items()}
    whole = complete(stacked, list(scale))
    return _stacked({variant: efficiency_curve(given, SHARES) for variant, given in whole.items()})


def improvements(summaries: pd.DataFrame, variant: str) -> pd.DataFrame:
    """How likely a run of `variant` beats one of each other complete variant; no scale is needed for that.

    Columns reference, probability, low, high.

    Raises:
        RunError: the variant has no run in some task.
    """
    scores = complete(_raw(summaries), list(summaries["task"].unique()))
    if variant not in scores:
        raise RunError(incomplete(variant, scores))
    rows = [
        (other, *probability_of_improvement(scores[variant], theirs))
        for other, theirs in scores.items()
        if other != variant
    ]
    return pd.DataFrame(rows, columns=["reference", "probability", "low", "high"])


def _stacked(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    frame = pd.concat([table.assign(variant=variant) for variant, table in tables.items()], ignore_index=True)
    return frame[["variant", *frame.columns.drop("variant")]]
