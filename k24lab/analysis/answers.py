"""What runs say about a question, in sentences: which method returns more, and whether that is shown."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from k24lab.analysis.aggregate import improvements, probability_of_improvement
from k24lab.analysis.load import RETURN
from k24lab.analysis.references import known_returns
from k24lab.analysis.similarity import ALL_LAYERS, CHANCE_HAMMING
from k24lab.analysis.stats import MIN_SEEDS, comparable, difference_interval, mean_interval, values_by_variant
from k24lab.analysis.style import method_style, variant_styles

DIGITS = 3  # of the larger of the numbers that are compared
SETTLED = {"entropy": 0.1, "flip_rate": 0.05}  # of masks that have come to rest: nats, share of the groups; at most
TIE = 0.01  # of a Hamming distance: independent masks of a small network scatter as much


def compare(values: Mapping[str, ArrayLike], a: str, b: str) -> str:
    """One sentence on two variants from the final values of their runs: which is higher, or that none is shown to be.

    A difference is shown where its 95 % interval (Welch, `stats.difference_interval`) leaves out 0. Below `MIN_SEEDS`
    seeds of either the sentence says that nothing can be concluded.
    """
    ours, theirs = (np.asarray(values[name], dtype=float) for name in (a, b))
    ours, theirs = ours[~np.isnan(ours)], theirs[~np.isnan(theirs)]
    styles = variant_styles([a, b])
    digits = _digits([*ours, *theirs])
    means = ", ".join(f"{styles[name].label} {_mean(x, digits)}" for name, x in ((a, ours), (b, theirs)))
    seeds = f"{len(ours)} seed{'s' if len(ours) != 1 else ''}"
    seeds = seeds if len(ours) == len(theirs) else f"{len(ours)} and {len(theirs)} seeds"
    return f"{means} over {seeds}: {_verdict(ours, theirs, styles[a].label, digits)}."


def _verdict(ours: np.ndarray, theirs: np.ndarray, name: str, digits: int) -> str:
    if min(len(ours), len(theirs)) < MIN_SEEDS:
        return f"nothing can be concluded, an interval needs {MIN_SEEDS} seeds of each"
    difference, low, high = difference_interval(ours, theirs)
    if low <= 0 <= high:
        return "no difference shown"
    word = "higher" if difference > 0 else "lower"
    ends = sorted((abs(low), abs(high)))
    by = f"{abs(difference):.{digits}f} {_interval(ends[0], ends[1], digits)}"
    chance, low, high = probability_of_improvement([ours], [theirs])
    return f"{name} is {word} by {by}, probability of improvement {chance:.2f} {_interval(low, high, 2)}"


def compare_tasks(summaries: pd.DataFrame, reference: str, value: str = RETURN) -> str:
    """A line in Markdown for each task and each variant beside the method or variant `reference`, as `compare` has it.

    `summaries` has the columns task, variant and `value`. Where the reference has several variants, a variant is
    compared with the one of the same settings, as in `stats.difference_table`.
    """
    lines = []
    for task, runs in summaries.dropna(subset=[value]).groupby("task", sort=False):
        groups = values_by_variant(runs, value)
        bases = sorted(name for name in groups if reference in (name, name.split(" ")[0]))
        for name in variant_styles(groups) if bases else ():
            base = comparable(name, reference, bases)
            if base != name:
                lines.append(f"- {task}: {compare(groups, name, base)}")
        if not bases:
            lines.append(f"- {task}: no run of {method_style(reference).label}, with which others are compared.")
        elif len(groups) == 1:
            lines.append(f"- {task}: no other method than {method_style(reference).label}.")
    return "\n".join(lines)


def compare_overall(summaries: pd.DataFrame, variant: str) -> str:
    """A line in Markdown for each other variant with runs in all tasks: how likely a run of `variant` returns more.

    One is shown to be ahead over the tasks where the interval of that probability leaves out 0.5.
    """
    table = improvements(summaries, variant).set_index("reference")
    styles = variant_styles([variant, *table.index])
    lines = []
    for other in (name for name in styles if name != variant):
        chance, low, high = map(float, table.loc[other, ["probability", "low", "high"]])
        shown = "ahead" if low > 0.5 else "behind" if high < 0.5 else "no difference shown"
        shown = "a single seed in some task, nothing can be concluded" if math.isnan(low) else shown
        pair = f"{styles[variant].label} against {styles[other].label}"
        lines.append(
            f"- {pair}, all tasks: probability of improvement {chance:.2f} {_interval(low, high, 2)}: {shown}."
        )
    return "\n".join(lines)


def describe_run(summary: pd.Series) -> str:
    """One sentence on a single run (a row of `load.load_summaries`): its final return beside what is known."""
    task, final = summary["task"], float(summary[RETURN])
    known = known_returns(task)
    digits = _digits([final, *known.values()])
    beside = "".join(f", {name} {value:.{digits}f}" for name, value in known.items())
    label = method_style(summary["method"]).label
    return f"{label} on {task}: {final:.{digits}f}{beside}. One seed: nothing can be concluded about the method."


def describe_masks(snapshots: pd.DataFrame) -> str:
    """Two sentences on the masks of a run at the end (`mask_tables.snapshot_table`): are they apart, are they settled?

    They are apart as far as `CHANCE_HAMMING` where they might be independent, and settled where entropy and flip rate
    are at most those of `SETTLED`.
    """
    last = snapshots[snapshots["layer"] == ALL_LAYERS].sort_values("t_env").iloc[-1]
    beyond = float(last["hamming"]) - CHANCE_HAMMING
    apart = "as far apart as" if abs(beyond) <= TIE else "further apart than" if beyond > 0 else "nearer than"
    settled = all(not last[key] > most for key, most in SETTLED.items())  # a single snapshot has no flip rate
    word = "have settled" if settled else "have not settled"
    return (
        f"The masks of two agents are {apart} independent ones: Hamming distance {last['hamming']:.2f}, of those "
        f"{CHANCE_HAMMING:.2f}. They {word}: entropy {last['entropy']:.2f} nats, flip rate {last['flip_rate']:.3f}."
    )


def _mean(values: np.ndarray, digits: int) -> str:
    """A mean and, from `MIN_SEEDS` runs on, its 95 % interval (Student's t)."""
    estimate = mean_interval(values)
    mean = f"{float(estimate.mean):.{digits}f}"
    if len(values) < MIN_SEEDS:
        return mean
    return f"{mean} {_interval(float(estimate.low), float(estimate.high), digits)}"


def _interval(low: float, high: float, digits: int) -> str:
    return "" if math.isnan(low) else f"[{low:.{digits}f}, {high:.{digits}f}]"


def _digits(values: list[float]) -> int:
    """Decimals that leave the largest of the numbers about `DIGITS` digits."""
    largest = max((abs(value) for value in values), default=0.0)
    return 2 if largest == 0 else max(0, DIGITS - 1 - math.floor(math.log10(largest)))
