"""Runs of one task under several settings (widths, team sizes, shared roles), side by side as if they were tasks."""

from collections.abc import Callable, Sequence

import pandas as pd

from k24lab.analysis.aggregate import area_under_curve
from k24lab.analysis.load import RETURN, load_metrics, load_summaries
from k24lab.analysis.stats import long_table
from k24lab.errors import RunError, unknown
from k24lab.lab.find_runs import Run

# Mean height of a run's learning curve: how early it learned, and how much.
OVER_TRAINING = "test_return_over_training"


def load_settings(runs: Sequence[Run], fields: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics and summaries of runs in which a setting, a task with values of `fields`, takes the place of the task.

    Variants are named within their setting, so that `k24` at two widths is the same method in two settings. Summaries
    also have `OVER_TRAINING`. A field that is no part of a configuration is a RunError.
    """
    settings: dict[str, list[Run]] = {}
    for run in runs:
        for field in fields:
            if field not in run.config:
                raise RunError(unknown("parameter", field, run.config))
        name = ", ".join([str(run.config["task"]), *(f"{field}={run.config[field]}" for field in fields)])
        settings.setdefault(name, []).append(run)
    metrics, summaries = (
        pd.concat([load(members).assign(task=name) for name, members in settings.items()], ignore_index=True)
        for load in (load_metrics, load_summaries)
    )
    rows = []
    for (task, run_id), evaluations in metrics.dropna(subset=[RETURN]).groupby(["task", "run"], sort=False):
        curve = evaluations.groupby("t_env")[RETURN].mean()
        rows.append((task, run_id, area_under_curve(curve)))
    over_training = pd.DataFrame(rows, columns=["task", "run", OVER_TRAINING])
    return metrics, summaries.merge(over_training, on=["task", "run"], how="left")


def both_measures(table: Callable[..., pd.DataFrame], summaries: pd.DataFrame, reference: str) -> pd.DataFrame:
    """A table of differences of the final returns, and below it of the means `OVER_TRAINING`: a column `measure` first.

    `table` is `stats.difference_table`, `stats.paired_table` or `aggregate.improvement_table`.
    """
    measures = {"final": RETURN, "over training": OVER_TRAINING}
    return long_table({name: table(summaries, reference, value) for name, value in measures.items()}, "measure")
