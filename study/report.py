"""The runs of the report: every method whose tuning is complete, on fresh seeds, with what the tuning chose."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from k24lab.errors import RunError
from k24lab.lab.backends import Backend
from k24lab.lab.config import Config
from k24lab.lab.runs import run_folder
from study import store
from study.protocol import ALWAYS, LEADERS, OWN_EXTRA, SEEDS, study_run
from study.tuning import FOLDER as TUNING

FIGURES = Path(__file__).resolve().parents[1] / "figures"
ONE, OF_TASK = "one setting for all tasks", "setting of the task"  # the two readings
# Methods that are another one with other defaults: their runs are its runs, bit by bit, and are made under its name.
MADE_AS = {"kaleidoscope-half": "kaleidoscope"}


def group(task: str) -> str:
    """The group of runs of a task's report."""
    return f"report_{task}"


def summaries(task: str) -> Path:
    """The file with the summaries of a task's report."""
    return FIGURES / group(task) / "runs.jsonl"


def choices(task: str) -> list[tuple[str, str, int]]:
    """Method, reading and candidate of everything that a task's report compares.

    The reading `ONE` is the one setting of each method, `OF_TASK` that of the task, if the task was tuned.

    Raises:
        RunError: nothing was chosen yet.
    """
    file = TUNING / "candidates.csv"
    if not file.is_file():
        raise RunError(f"{file} does not exist: python -m study tune, then python -m study choose")
    table = pd.read_csv(file)
    table["candidate"] = table.groupby(["method", "task"], sort=False).cumcount()
    one = table[table["one"]].drop_duplicates("method")
    if task in OWN_EXTRA:
        one = one[one["method"].isin(leading_methods())]
    own = table[table["of_task"] & (table["task"] == task)]
    return [
        (str(row["method"]), reading, int(row["candidate"]))
        for reading, rows in ((ONE, one), (OF_TASK, own))
        for row in rows.to_dict("records")
    ]


def leading_methods() -> set[str]:
    """The methods of tasks that take so long that not all methods run there.

    Raises:
        RunError: there are no results of the other tasks yet.
    """
    file = FIGURES / "study" / "aggregates.csv"
    if not file.is_file():
        raise RunError(f"{file} does not exist: python -m study report, then python -m study results")
    table = pd.read_csv(file)
    best = table[table["aggregate"] == "IQM"].nlargest(LEADERS, "value")
    return {*ALWAYS, *best["variant"]}


def report_run(task: str, method: str, candidate: int, seed: int) -> Config:
    """A run of the report, under the name that it is made under."""
    return replace(study_run(task, method, candidate, seed), method=MADE_AS.get(method, method))


def report_runs(task: str) -> list[Config]:
    """All runs of a task's report."""
    runs = [report_run(task, method, k, seed) for method, _, k in choices(task) for seed in range(SEEDS[task])]
    return list({run_folder(run, group(task)): run for run in runs}.values())  # the two readings may agree


def report(tasks: Sequence[str], backend: Backend) -> None:
    """Train what is missing, a task after the other."""
    for task in tasks:
        store.restore(group(task), summaries(task))
        store.train(group(task), report_runs(task), backend, summaries(task))
