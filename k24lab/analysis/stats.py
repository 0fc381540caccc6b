"""Means over seeds with their uncertainty, and comparisons of variants task by task."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats as scipy_stats

from k24lab.analysis.load import RETURN
from k24lab.errors import RunError, unknown
from k24lab.methods import METHODS

CONFIDENCE = 0.95
GRID_POINTS = 101
MIN_SEEDS = 3  # for an interval that is drawn: that of two seeds is nine standard deviations to either side


class Estimate(NamedTuple):
    """A mean and the ends of its interval, one entry per column, from `n` runs; NaN ends where n < 2."""

    mean: Float[np.ndarray, " *shape"]
    low: Float[np.ndarray, " *shape"]
    high: Float[np.ndarray, " *shape"]
    n: np.ndarray


def mean_interval(values: np.ndarray) -> Estimate:
    """Mean over axis 0 (runs) with Student's 95 % interval: mean ± t(n-1) · s / sqrt(n), NaN entries left out.

    `values` is [n_runs, ...]. Exact for normal data; with the usual 3 to 10 seeds it is wider than a bootstrap
    interval, which is too narrow for so few. scipy.stats.ttest_1samp gives the same interval up to rounding, but warns
    where all seeds are equal.
    """
    values = np.asarray(values, dtype=float)
    present = ~np.isnan(values)
    n = present.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(present, values, 0.0).sum(axis=0) / n
        variance = (np.where(present, values - mean, 0.0) ** 2).sum(axis=0) / (n - 1)
        half = scipy_stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * np.sqrt(variance / n)
        half = np.where(n > 1, half, np.nan)
    return Estimate(np.asarray(mean), mean - half, mean + half, np.asarray(n))


def drawn_interval(values: pd.Series) -> tuple[float, float]:
    """Ends of the interval that a figure shows (seaborn's `errorbar`): NaN for fewer than `MIN_SEEDS` runs."""
    estimate = mean_interval(values.to_numpy())
    return (estimate.low.item(), estimate.high.item()) if len(values) >= MIN_SEEDS else (np.nan, np.nan)


def difference_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """mean(a) − mean(b) and its 95 % interval (Welch: unequal variances); NaN ends if either has fewer than 2 runs.

    This, and not whether two intervals overlap, answers whether two methods differ: they do, at this confidence, if the
    interval leaves out 0.
    """
    a, b = (np.asarray(x, dtype=float)[~np.isnan(x)] for x in (a, b))
    difference = float(a.mean() - b.mean()) if a.size and b.size else float("nan")
    if min(a.size, b.size) < 2:
        return difference, float("nan"), float("nan")
    var_a, var_b = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    if var_a + var_b == 0:
        return difference, difference, difference
    dof = (var_a + var_b) ** 2 / (var_a**2 / (a.size - 1) + var_b**2 / (b.size - 1))
    half = float(scipy_stats.t.ppf(0.5 + CONFIDENCE / 2, dof) * np.sqrt(var_a + var_b))
    return difference, difference - half, difference + half


def curves(metrics: pd.DataFrame, value: str = RETURN) -> pd.DataFrame:
    """Mean and 95 % interval of a metric over the runs of each task and variant, along t_env (env steps).

    Columns task, variant, t_env, mean, low, high, n. The points are the runs' own t_env where they share it, else 101
    over the span that all runs cover, to which each run is interpolated linearly; it is NaN outside its own span.
    """
    if value not in metrics:
        raise RunError(unknown("metric", value, metrics.columns))
    frames = []
    for (task, variant), group in metrics.dropna(subset=[value]).groupby(["task", "variant"], sort=False):
        runs = [run.groupby("t_env")[value].mean() for _, run in group.groupby("run", sort=False)]
        points = _common_grid([run.index.to_numpy() for run in runs])
        table = np.stack([np.interp(points, run.index, run, left=np.nan, right=np.nan) for run in runs])
        frames.append(
            pd.DataFrame({"task": task, "variant": variant, "t_env": points} | mean_interval(table)._asdict())
        )
    if not frames:
        return pd.DataFrame(columns=["task", "variant", "t_env", *Estimate._fields])
    return pd.concat(frames, ignore_index=True)


def _common_grid(times: Sequence[np.ndarray]) -> np.ndarray:
    """Times at which runs can be averaged: their own if all agree, else evenly over the span common to all.

    Runs with no common span get the whole span, so that nothing disappears; `n` then says how many count where.
    """
    if all(np.array_equal(times[0], other) for other in times):
        return np.asarray(times[0])
    start, stop = max(t[0] for t in times), min(t[-1] for t in times)
    if start >= stop:
        start, stop = min(t[0] for t in times), max(t[-1] for t in times)
    return np.linspace(start, stop, GRID_POINTS)


def final_table(summaries: pd.DataFrame, value: str = RETURN, by: Sequence[str] = ("task", "variant")) -> pd.DataFrame:
    """One row per group: by…, n (runs), mean, low, high (95 %, Student's t), iqm; best mean first within a task."""
    rows = []
    for keys, scores in summaries.dropna(subset=[value]).groupby(list(by), sort=False)[value]:
        mean, low, high, n = (x.item() for x in mean_interval(scores.to_numpy(dtype=float)))
        rows.append((*keys, n, mean, low, high, scipy_stats.trim_mean(scores, 0.25).item()))
    table = pd.DataFrame(rows, columns=[*by, "n", "mean", "low", "high", "iqm"])
    return table.sort_values([*by[:-1], "mean"], ascending=[True] * (len(by) - 1) + [False], ignore_index=True)


def long_table(tables: Mapping[str, pd.DataFrame], name: str) -> pd.DataFrame:
    """Tables of the same columns under each other, their keys in a first column `name`; empty for no tables."""
    parts = [table.assign(**{name: key})[[name, *table.columns]] for key, table in tables.items()]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({name: []})


def difference_table(summaries: pd.DataFrame, reference: str, value: str = RETURN) -> pd.DataFrame:
    """Per task, every variant against the method `reference`: difference of means with its interval.

    Where the reference has several variants a variant is compared with the one of the same settings (`k24
    mask_rnn=False` with `random24 mask_rnn=False`), or if there is none with the plain one. Columns task, variant,
    reference, n, n_reference, difference, low, high, the largest difference first; empty if no run used the reference.
    """
    known = {*METHODS, *map(str, summaries["method"])}
    if reference not in known:
        raise RunError(unknown("reference", reference, known))
    rows = []
    for task, runs in summaries.dropna(subset=[value]).groupby("task", sort=False):
        groups = values_by_variant(runs, value)
        bases = sorted(runs.loc[runs["method"] == reference, "variant"].unique())
        for name in groups if bases else ():
            base = comparable(name, reference, bases)
            if base != name:
                sizes = (groups[name].size, groups[base].size)
                rows.append((task, name, base, *sizes, *difference_interval(groups[name], groups[base])))
    columns = ["task", "variant", "reference", "n", "n_reference", "difference", "low", "high"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["task", "difference"], ascending=[True, False], ignore_index=True)


def values_by_variant(runs: pd.DataFrame, value: str) -> dict[str, np.ndarray]:
    """The runs' values by variant."""
    return {str(name): each.to_numpy(dtype=float) for name, each in runs.groupby("variant", sort=False)[value]}


def comparable(variant: str, reference: str, bases: Sequence[str]) -> str:
    """Which of the reference's variants, the plain one first, a variant is compared with; the plain one with itself."""
    method, _, settings = variant.partition(" ")
    same = f"{reference} {settings}".strip()
    return same if method != reference and same in bases else bases[0]


def most_different(summaries: pd.DataFrame, reference: str, most: int = 12) -> list[str]:
    """The variants that a figure of curves can hold: all, or of more than `most` the methods in their plain form and
    those others whose final return is furthest from that of `reference`, on the scale of each task's means.
    """
    variants = list(summaries["variant"].unique())
    differences = difference_table(summaries, reference)
    if len(variants) <= most:
        return variants
    span = summaries.groupby(["task", "variant"])[RETURN].mean().groupby("task").agg(np.ptp)
    distance = differences["difference"].abs() / differences["task"].map(span).replace(0.0, np.nan)
    furthest = distance.groupby(differences["variant"]).max().reindex(variants).fillna(0.0)
    plain = [variant in set(summaries["method"]) for variant in variants]
    order = sorted(range(len(variants)), key=lambda k: (not plain[k], -furthest.iloc[k]))
    return [variants[k] for k in sorted(order[:most])]


def paired_table(summaries: pd.DataFrame, reference: str, value: str = RETURN) -> pd.DataFrame:
    """Per task, every variant against the variant `reference`, seed by seed: mean of the differences with its interval.

    Right where the same seed gives both the same start: learned masks begin as the random ones of their seed, with the
    same weights and in the same environments, so that the luck of a seed drops out. Columns task, variant, n (seeds
    that both have), n_better (those in which the variant is ahead), difference, low, high (Student's t).
    """
    rows = []
    for task, runs in summaries.dropna(subset=[value]).groupby("task", sort=False):
        by_seed = runs.pivot_table(index="seed", columns="variant", values=value)
        for name in by_seed.columns.drop(reference) if reference in by_seed else ():
            gains = (by_seed[name] - by_seed[reference]).dropna().to_numpy()
            if gains.size:
                mean, low, high, n = (x.item() for x in mean_interval(gains))
                rows.append((task, name, n, int((gains > 0).sum()), mean, low, high))
    return pd.DataFrame(rows, columns=["task", "variant", "n", "n_better", "difference", "low", "high"])
