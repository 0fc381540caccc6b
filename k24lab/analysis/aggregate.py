"""Many tasks at once: aggregates, profiles and comparisons, in the vocabulary of rliable (Agarwal et al., 2021).

Scores are one array of runs per task, on one scale (`task_scale`). Intervals are stratified percentile bootstraps: runs
are drawn with replacement within each task, never across. Missing seeds only shorten a task's array; every task then
still counts alike.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from k24lab.analysis.load import RETURN
from k24lab.analysis.stats import CONFIDENCE, long_table, values_by_variant
from k24lab.errors import ConfigError, RunError, unknown

TaskScores = Sequence[np.ndarray]  # of each task, [n_runs] or [n_runs, points]
Draws = Sequence[np.ndarray]  # of each task, [n_draws, n_runs] or [n_draws, n_runs, points]
Scale = Mapping[str, tuple[float, float]]  # task -> the returns that count as 0 and as 1

N_RESAMPLES = 2000
SHARES = np.linspace(0.0, 1.0, 41)  # of the env steps of a task
THRESHOLDS = np.linspace(-0.2, 1.2, 71)


def mean(draws: Draws) -> np.ndarray:
    """Mean over tasks of the mean over runs."""
    return np.mean([task.mean(axis=1) for task in draws], axis=0)


def median(draws: Draws) -> np.ndarray:
    """Median over tasks of the mean over runs: blind to all but the middle tasks."""
    return np.median([task.mean(axis=1) for task in draws], axis=0)


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
    return 1.0 - mean([np.minimum(task, 1.0) for task in draws])


AGGREGATES = {"IQM": interquartile_mean, "median": median, "mean": mean, "optimality gap": optimality_gap}


def bootstrap(
    statistic: Callable[[Draws], np.ndarray], tasks: TaskScores, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "3 *points"]:
    """A statistic of the runs and the ends of its 95 % interval, NaN where a task has a single run."""
    rng = np.random.default_rng(seed)
    draws = [task[rng.integers(len(task), size=(n_resamples, len(task)))] for task in tasks]
    value = statistic([task[None] for task in tasks])[0]
    certain = min(map(len, tasks)) > 1
    return np.array([value, *_interval(statistic(draws) if certain else np.full((1, *np.shape(value)), np.nan))])


def _interval(draws: Float[np.ndarray, "n_draws *shape"]) -> Float[np.ndarray, "2 *shape"]:
    return np.quantile(draws, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2], axis=0)


def _clean(scores: TaskScores) -> list[np.ndarray]:
    """Without missing runs; no task, or a task without a run, is a ConfigError."""
    found = [np.asarray(task, dtype=float)[~np.isnan(task)] for task in scores]
    if not found or min(task.size for task in found) == 0:
        raise ConfigError(f"each task needs at least one run; there are {[task.size for task in found]}")
    return found


def aggregate_table(scores: Mapping[str, TaskScores], n_resamples: int = N_RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """Every aggregate of every variant: columns variant, aggregate, n_tasks, n_runs, value, low, high."""
    rows = []
    for variant, given in scores.items():
        tasks = _clean(given)
        for name, statistic in AGGREGATES.items():
            estimate = map(float, bootstrap(statistic, tasks, n_resamples, seed))
            rows.append((variant, name, len(tasks), sum(task.size for task in tasks), *estimate))
    return pd.DataFrame(rows, columns=["variant", "aggregate", "n_tasks", "n_runs", "value", "low", "high"])


def performance_profile(
    scores: TaskScores, thresholds: Float[np.ndarray, " points"], n_resamples: int = N_RESAMPLES
) -> pd.DataFrame:
    """Share of the runs that score above each threshold, tasks alike: columns threshold, share, low, high."""
    above = [task[:, None] > np.asarray(thresholds) for task in _clean(scores)]
    share, low, high = bootstrap(mean, above, n_resamples)
    return pd.DataFrame({"threshold": thresholds, "share": share, "low": low, "high": high})


def probability_of_improvement(
    scores: TaskScores, reference: TaskScores, n_resamples: int = N_RESAMPLES
) -> tuple[float, float, float]:
    """How likely a run beats one of the reference on the same task, ties half: mean over tasks, and its interval.

    Task by task it is the Mann-Whitney U statistic over the number of pairs. The interval is NaN where a task has a
    single run of either.
    """
    ours, theirs = _clean(scores), _clean(reference)
    rng = np.random.default_rng(0)
    value, draws = 0.0, np.zeros(n_resamples)
    for a, b in zip(ours, theirs, strict=True):
        better = np.sign(a[:, None] - b) / 2 + 0.5
        value += better.mean() / len(ours)
        rows, columns = (rng.integers(n, size=(n_resamples, n)) for n in better.shape)
        draws += better[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2)) / len(ours)
    certain = min(task.size for task in (*ours, *theirs)) > 1
    low, high = _interval(draws) if certain else (np.nan, np.nan)
    return float(value), float(low), float(high)


def area_under_curve(curve: pd.Series) -> float:
    """Mean height of a learning curve (values by env steps) over its span: speed of learning and final score in one."""
    t_env = curve.index.to_numpy(dtype=float)
    if t_env.size < 2:
        raise ConfigError(f"a curve needs at least two points; it has those at {t_env.tolist()} env steps")
    return float(np.trapezoid(curve.to_numpy(dtype=float), t_env) / (t_env[-1] - t_env[0]))


def task_scale(
    metrics: pd.DataFrame, summaries: pd.DataFrame, given: Mapping[str, Sequence[float]] | None = None
) -> dict[str, tuple[float, float]]:
    """What counts as 0 and 1 in each task: the untrained networks' mean return, and the best variant's final mean.

    `given` replaces the scale of the tasks that it names. A task in it that has no runs, and a scale that does not
    rise, are a RunError.
    """
    given, tasks = given or {}, list(map(str, summaries["task"].unique()))
    for task in given.keys() - tasks:
        raise RunError(unknown("task", task, tasks))
    curves = metrics.dropna(subset=[RETURN])
    first = curves.sort_values("t_env").groupby(["task", "run"])[RETURN].first().groupby("task").mean()
    best = summaries.groupby(["task", "variant"])[RETURN].mean().groupby("task").max()
    scale = {}
    for task in tasks:
        low, high = map(float, given.get(task, (first[task], best[task])))
        if not -np.inf < low < high < np.inf:
            raise RunError(
                f"{task}: a return of {low:.4g} would count as 0 and {high:.4g} as 1, but must rise: give both returns "
                f"as scale[{task!r}], or leave out a task in which nothing is learned"
            )
        scale[task] = (low, high)
    return scale


def _scaled(frame: pd.DataFrame, scale: Scale) -> pd.DataFrame:
    """Rows with a test return, and in the column `score` that return on the scale of their task."""
    frame = frame.dropna(subset=[RETURN])
    low, high = (frame["task"].map({task: ends[k] for task, ends in scale.items()}) for k in (0, 1))
    return frame.assign(score=(frame[RETURN] - low) / (high - low))


def _curve_scores(metrics: pd.DataFrame, scale: Scale) -> pd.DataFrame:
    """A row per run: variant, task, `area` (under its curve) and `heights` (of its curve, at SHARES of t_max)."""
    rows = []
    for (variant, task, _), run in _scaled(metrics, scale).groupby(["variant", "task", "run"], sort=False):
        curve = run.groupby("t_env")["score"].mean()
        heights = np.interp(SHARES * int(run["t_max"].iloc[0]), curve.index, curve)
        rows.append((variant, task, area_under_curve(curve), heights))
    return pd.DataFrame(rows, columns=["variant", "task", "area", "heights"])


def complete(runs: pd.DataFrame, value: str, tasks: Iterable[str]) -> dict[str, list[np.ndarray]]:
    """The variants with runs in all tasks, and their values in the order of the tasks; others have no aggregate.

    That there is none is a RunError.
    """
    tasks = list(tasks)
    found: dict[str, dict[str, np.ndarray]] = {}
    for (variant, task), values in runs.dropna(subset=[value]).groupby(["variant", "task"], sort=False)[value]:
        found.setdefault(str(variant), {})[str(task)] = np.stack(values.tolist())
    whole = {v: [by_task[task] for task in tasks] for v, by_task in found.items() if set(tasks) <= by_task.keys()}
    if not whole:
        there = "; ".join(f"{variant} in {', '.join(by_task)}" for variant, by_task in found.items())
        raise RunError(f"no variant has finished runs in all of {', '.join(tasks)} (there are: {there})")
    return whole


def complete_returns(summaries: pd.DataFrame, variant: str | None = None) -> dict[str, list[np.ndarray]]:
    """Final returns, a task each, of the variants with runs in all tasks; `variant` must be among them (RunError)."""
    found = complete(summaries, RETURN, summaries["task"].unique())
    if variant is not None and variant not in found:
        raise RunError(f"variant {variant!r} does not have runs in all tasks; those that have: {', '.join(found)}")
    return found


def aggregates(metrics: pd.DataFrame, summaries: pd.DataFrame, scale: Scale) -> pd.DataFrame:
    """`aggregate_table` of the final scores of the complete variants, and the mean area under the curve."""
    final = aggregate_table(complete(_scaled(summaries, scale), "score", scale))
    area = aggregate_table(complete(_curve_scores(metrics, scale), "area", scale))
    area = area[area["aggregate"] == "mean"].assign(aggregate="area under curve")
    return pd.concat([final, area], ignore_index=True)


def profiles(summaries: pd.DataFrame, scale: Scale) -> pd.DataFrame:
    """Performance profile of every complete variant: columns variant, threshold, share, low, high."""
    scores = complete(_scaled(summaries, scale), "score", scale)
    return long_table({variant: performance_profile(given, THRESHOLDS) for variant, given in scores.items()}, "variant")


def efficiency(metrics: pd.DataFrame, scale: Scale) -> pd.DataFrame:
    """IQM over runs and tasks against the share of each task's env steps: columns variant, budget, iqm, low, high."""
    tables = {}
    for variant, tasks in complete(_curve_scores(metrics, scale), "heights", scale).items():
        iqm, low, high = bootstrap(interquartile_mean, tasks, N_RESAMPLES // 4)
        tables[variant] = pd.DataFrame({"budget": SHARES, "iqm": iqm, "low": low, "high": high})
    return long_table(tables, "variant")


def improvements(summaries: pd.DataFrame, variant: str) -> pd.DataFrame:
    """How likely a run of `variant` beats one of each other complete variant; no scale is needed for that.

    Columns reference, probability, low, high.
    """
    scores = complete_returns(summaries, variant)
    ours = scores.pop(variant)
    rows = [(other, *probability_of_improvement(ours, theirs)) for other, theirs in scores.items()]
    return pd.DataFrame(rows, columns=["reference", "probability", "low", "high"])


def improvement_table(summaries: pd.DataFrame, reference: str, value: str = RETURN) -> pd.DataFrame:
    """Per task, how likely a run of every other variant beats one of the variant `reference`, in `value`.

    Where single runs fail it says more than a difference of means. Columns task, variant, n, n_reference, probability,
    low, high; tasks without the reference are left out.
    """
    rows = []
    for task, runs in summaries.dropna(subset=[value]).groupby("task", sort=False):
        returns = values_by_variant(runs, value)
        if reference in returns:
            base = returns.pop(reference)
            for name, ours in returns.items():
                rows.append((task, name, ours.size, base.size, *probability_of_improvement([ours], [base])))
    return pd.DataFrame(rows, columns=["task", "variant", "n", "n_reference", "probability", "low", "high"])
