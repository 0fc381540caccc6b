"""The runs of the report: every method whose tuning is complete, on fresh seeds, with what the tuning chose."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from k24lab.errors import RunError
from k24lab.lab.backends import Backend
from k24lab.lab.config import Config
from study import store
from study.protocol import SEEDS, TUNING_TASKS, study_run
from study.tuning import FOLDER as TUNING

FIGURES = Path(__file__).resolve().parents[1] / "figures"


def group(task: str) -> str:
    """The group of runs of a task's report."""
    return f"report_{task}"


def summaries(task: str) -> Path:
    """The file with the summaries of a task's report."""
    return FIGURES / group(task) / "runs.jsonl"


def settings(task: str) -> list[tuple[str, int]]:
    """Methods and the candidates that they are reported with: their one setting, and that of the task if it was tuned.

    Raises:
        RunError: nothing was chosen yet.
    """
    file = TUNING / "candidates.csv"
    if not file.is_file():
        raise RunError(f"{file} does not exist: python -m study tune, then python -m study choose")
    table = pd.read_csv(file)
    table["candidate"] = table.groupby(["method", "task"], sort=False).cumcount()
    of_task = table["of_task"] & (table["task"] == task) if task in TUNING_TASKS else False
    chosen = table[table["one"] | of_task]
    pairs = zip(chosen["method"], chosen["candidate"], strict=True)
    return list(dict.fromkeys((str(method), int(k)) for method, k in pairs))


def report_runs(task: str) -> list[Config]:
    """All runs of a task's report."""
    return [study_run(task, method, k, seed) for method, k in settings(task) for seed in range(SEEDS[task])]


def report(tasks: Sequence[str], backend: Backend) -> None:
    """Train what is missing, a task after the other."""
    for task in tasks:
        store.restore(group(task), summaries(task))
        store.train(group(task), report_runs(task), backend, summaries(task))
