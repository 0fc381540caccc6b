"""Many tasks at once: aggregates, profiles and comparisons, in the vocabulary of rliable (Agarwal et al., 2021).

Scores are one array of runs [n_runs] per task, on one scale (`normalised`). Intervals are stratified percentile
bootstraps: runs are drawn with replacement within each task, never across. Missing seeds only shorten a task's array;
every task then still counts alike.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from k24lab.analysis.stats import CONFIDENCE
from k24lab.errors import ConfigError

Scores = Sequence[np.ndarray]  # of each task, [n_runs]
Draws = Sequence[np.ndarray]  # of each task, [n_draws, n_runs]
Statistic = Callable[[Draws], np.ndarray]

N_RESAMPLES = 2000


def normalised(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scores on the scale where `low` is 0 and `high` is 1.

    Raises:
        ConfigError: both are the same, or one is not a number.
    """
    if not (np.isfinite(low) and np.isfinite(high)) or low == high:
        raise ConfigError(f"scores cannot be put between low = {low!r} and high = {high!r}: they must be two numbers")
    return (np.asarray(values, dtype=float) - low) / (high - low)


def _per_task(draws: Draws) -> Float[np.ndarray, "n_tasks n_draws"]:
    return np.stack([task.mean(axis=1) for task in draws])


def mean(draws: Draws) -> np.ndarray:
    """Mean over tasks of the mean over runs."""
    return _per_task(draws).mean(axis=0)


def median(draws: Draws) -> np.ndarray:
    """Median over tasks of the mean over runs: blind to all but the middle tasks."""
    return np.median(_per_task(draws), axis=0)


def interquartile_mean(draws: Draws) -> np.ndarray:
    """Mean of the middle half of all runs of all tasks.

    A run weighs one over its task's number of runs. With as many runs in every task it is rliable's, which weighs all
    runs alike, so that tasks with more seeds count more.
    """
    values = np.concatenate(draws, axis=1)
    weights = np.concatenate([np.full(task.shape[1], 1 / task.shape[1]) for task in draws]) / len(draws)
    cut = int(0.25 * len(weights)) / len(weights)  # whole runs, as rliable and scipy cut them
    order = np.argsort(values, axis=1)
    upper = np.cumsum(weights[order], axis=1)
    inside = np.clip(upper, cut, 1 - cut) - np.clip(upper - weights[order], cut, 1 - cut)
    return np.asarray((np.take_along_axis(values, order, axis=1) * inside).sum(axis=1) / (1 - 2 * cut))


def optimality_gap(draws: Draws) -> np.ndarray:
    """How far runs stay below 1, on average; what exceeds 1 does not make up for it."""
    return 1.0 - _per_task([np.minimum(task, 1.0) for task in draws]).mean(axis=0)


AGGREGATES: dict[str, Statistic] = {
    "IQM": interquartile_mean,
    "median": median,
    "mean": mean,
    "optimality gap": optimality_gap,
}


def _clean(scores: Scores) -> list[np.ndarray]:
    """Without missing runs.

    Raises:
        ConfigError: no task, or a task without a run.
    """
    found = [np.asarray(task, dtype=float)[~np.isnan(task)] for task in scores]
    if not found or min(task.size for task in found) == 0:
        raise ConfigError(f"each task needs at least one run; there are {[task.size for task in found]}")
    return found


def _resampled(scores: Scores, n_resamples: int, rng: np.random.Generator) -> Draws:
    return [task[rng.integers(task.size, size=(n_resamples, task.size))] for task in scores]


def _interval(values: np.ndarray, confidence: float) -> Float[np.ndarray, "2 *shape"]:
    """Low and high end for draws on the first axis."""
    return np.quantile(values, [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)


def aggregate_table(
    scores: Mapping[str, Scores], confidence: float = CONFIDENCE, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Every aggregate of every variant: columns variant, aggregate, n_tasks, n_runs, value, low, high.

    The interval is NaN where a task has a single run.
    """
    rows = []
    for variant, given in scores.items():
        tasks = _clean(given)
        draws = _resampled(tasks, n_resamples, np.random.default_rng(seed))
        certain = min(task.size for task in tasks) > 1
        for name, statistic in AGGREGATES.items():
            value = statistic([task[None] for task in tasks]).item()
            low, high = _interval(statistic(draws), confidence) if certain else (np.nan, np.nan)
            rows.append((variant, name, len(tasks), sum(task.size for task in tasks), value, float(low), float(high)))
    return pd.DataFrame(rows, columns=["variant", "aggregate", "n_tasks", "n_runs", "value", "low", "high"])


def performance_profile(
    scores: Scores,
    thresholds: Float[np.ndarray, " points"],
    confidence: float = CONFIDENCE,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of the runs that score above each threshold, tasks alike: columns threshold, share, low, high."""
    tasks = _clean(scores)
    above = [task[:, None] > np.asarray(thresholds) for task in tasks]
    rng = np.random.default_rng(seed)
    draws = np.mean([a[rng.integers(len(a), size=(n_resamples, len(a)))].mean(axis=1) for a in above], axis=0)
    low, high = _interval(draws, confidence)
    if min(task.size for task in tasks) < 2:
        low = high = np.full_like(low, np.nan)
    share = np.mean([a.mean(axis=0) for a in above], axis=0)
    return pd.DataFrame({"threshold": thresholds, "share": share, "low": low, "high": high})


def efficiency_curve(
    curves: Scores,
    budget: Float[np.ndarray, " points"],
    confidence: float = CONFIDENCE,
    n_resamples: int = N_RESAMPLES // 4,
    seed: int = 0,
) -> pd.DataFrame:
    """IQM at each point of the budget: columns budget, iqm, low, high. `curves` of each task are [n_runs, points]."""
    rng = np.random.default_rng(seed)
    value = interquartile_mean([task[None] for task in curves])[0]
    draws = interquartile_mean([task[rng.integers(len(task), size=(n_resamples, len(task)))] for task in curves])
    low, high = _interval(draws, confidence)
    if min(len(task) for task in curves) < 2:
        low = high = np.full_like(value, np.nan)
    return pd.DataFrame({"budget": budget, "iqm": value, "low": low, "high": high})


def probability_of_improvement(
    scores: Scores, reference: Scores, confidence: float = CONFIDENCE, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """How likely a run beats one of the reference on the same task, ties half: mean over tasks, and its interval.

    Task by task it is the Mann-Whitney U statistic over the number of pairs. The interval is NaN where a task has a
    single run of either.

    Raises:
        ConfigError: not the same number of tasks.
    """
    ours, theirs = _clean(scores), _clean(reference)
    if len(ours) != len(theirs):
        raise ConfigError(f"{len(ours)} and {len(theirs)} tasks cannot be compared: they must be the same")
    rng = np.random.default_rng(seed)
    value, draws = 0.0, np.zeros(n_resamples)
    for a, b in zip(ours, theirs, strict=True):
        better = np.sign(a[:, None] - b) / 2 + 0.5
        value += better.mean() / len(ours)
        rows, columns = (rng.integers(n, size=(n_resamples, n)) for n in better.shape)
        draws += better[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2)) / len(ours)
    certain = min(task.size for task in (*ours, *theirs)) > 1
    low, high = _interval(draws, confidence) if certain else (np.nan, np.nan)
    return float(value), float(low), float(high)


def area_under_curve(t_env: np.ndarray, values: np.ndarray) -> float:
    """Mean height of a learning curve over its span (trapezoids): speed of learning and final score in one number.

    Raises:
        ConfigError: fewer than two points, or times that do not rise.
    """
    t_env, values = np.asarray(t_env, dtype=float), np.asarray(values, dtype=float)
    if t_env.size < 2 or (np.diff(t_env) <= 0).any():
        raise ConfigError(f"a curve needs at least two points with rising t_env; it has {t_env.tolist()[:5]}")
    return float(np.trapezoid(values, t_env) / (t_env[-1] - t_env[0]))
