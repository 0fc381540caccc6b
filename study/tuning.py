"""Tuning by successive halving: every candidate at half of the budget, then the best ones twice at the whole one."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from k24lab.analysis.export import run_lines
from k24lab.analysis.load import RETURN, load_metrics, load_summaries
from k24lab.errors import RunError
from k24lab.lab.backends import Backend
from k24lab.lab.config import Config
from k24lab.lab.files import atomic_write
from k24lab.lab.find_runs import find_runs, read_json
from k24lab.lab.grid import Grid
from k24lab.lab.importer import import_runs
from k24lab.lab.paths import runs_dir
from k24lab.lab.runs import FAILED, run_folder
from k24lab.lab.sweep import sweep
from study.protocol import SURVIVORS, TUNING_SEEDS, TUNING_TASKS, candidates, first_round, second_round

FOLDER = Path(__file__).resolve().parents[1] / "figures" / "tuning"
Returns = Mapping[str, np.ndarray]  # task -> a return of each candidate of a method, NaN where it has no run


class Choice(NamedTuple):
    """What tuning chose for a method."""

    per_task: dict[str, int]  # candidate that is best on a task
    one: int  # candidate for all tasks


def group(task: str) -> str:
    """The group of runs of a task's tuning."""
    return f"tuning_{task}"


def collect(task: str) -> None:
    """Write the summaries of all finished runs of a task, so that another checkout can go on from them."""
    if not any(runs_dir().glob(f"{group(task)}/*/DONE")):
        return
    runs = find_runs(group(task), finished_only=False)
    runs = [run for run in runs if run.finished]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with atomic_write(FOLDER / f"{task}_runs.jsonl") as file:
        file.write(run_lines(load_metrics(runs), load_summaries(runs)).encode())


def restore(task: str) -> None:
    """Make run folders of the summaries that are committed; what is there already stays."""
    if (FOLDER / f"{task}_runs.jsonl").is_file():
        import_runs([FOLDER / f"{task}_runs.jsonl"], group(task))


def final_return(config: Config, task: str) -> float:
    """The last test of a run; NaN if it has not ended, and below all others if its training failed."""
    folder = run_folder(config, group(task))
    if (folder / FAILED).exists():
        return -np.inf
    return float(read_json(folder / "summary.json")[RETURN]) if (folder / "DONE").exists() else np.nan


def first_returns(method: str) -> dict[str, np.ndarray]:
    """Of every task, the returns of the nine candidates in the first round."""
    return {task: np.array([final_return(c, task) for c in first_round(task, method)]) for task in TUNING_TASKS}


def second_returns(method: str, left: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    """Of every task, the mean returns of the candidates that are left in the second round."""
    returns = {}
    for task in TUNING_TASKS:
        runs = [final_return(config, task) for config in second_round(task, method, left[task])]
        returns[task] = np.full(len(candidates(method)), np.nan)
        returns[task][left[task]] = np.reshape(runs, (-1, len(TUNING_SEEDS))).mean(axis=1)
    return returns


def best_overall(first: Returns) -> list[int]:
    """The candidates with the best mean rank over the tasks of the first round; of equal ones those listed first."""
    ranks = np.mean([(-pd.Series(values)).rank().to_numpy() for values in first.values()], axis=0)
    return [int(k) for k in np.argsort(ranks, kind="stable")[:SURVIVORS]]


def survivors(first: Returns) -> dict[str, list[int]]:
    """Who goes on to the second round: of each task its two best, and the two that are best over all tasks."""
    overall = best_overall(first)
    own = {task: np.argsort(-values, kind="stable")[:SURVIVORS] for task, values in first.items()}
    return {task: sorted({*map(int, best), *overall}) for task, best in own.items()}


def choose(first: Returns, second: Returns, scale: Mapping[str, tuple[float, float]]) -> Choice:
    """The best candidate of each task, and of the two that are best overall the one with the higher mean score.

    Args:
        first: returns of the first round.
        second: mean returns of the second round.
        scale: of each task the returns that count as 0 and as 1.
    """
    per_task = {task: int(np.nanargmax(values)) for task, values in second.items()}
    scores = [
        np.mean([(second[task][k] - low) / (high - low) for task, (low, high) in scale.items()])
        for k in best_overall(first)
    ]
    return Choice(per_task, best_overall(first)[int(np.argmax(scores))])


def tune(tasks: list[str], methods: list[str], backend: Backend) -> None:
    """Train what is missing: first rounds of the tasks, then, for methods with a whole first round, second rounds."""
    for task in TUNING_TASKS:
        restore(task)
    for task in tasks:
        _sweep(task, [config for method in methods for config in first_round(task, method)], backend)
    for method in methods:
        first = first_returns(method)
        if any(np.isnan(values).any() for values in first.values()):
            continue
        left = survivors(first)
        for task in tasks:
            _sweep(task, second_round(task, method, left[task]), backend)


def _sweep(task: str, configs: list[Config], backend: Backend) -> None:
    try:
        sweep(Grid(group(task), configs), backend)
    except RunError as error:  # runs whose training failed; the others go on
        print(error)
    finally:
        collect(task)


def table(method: str) -> pd.DataFrame:
    """A row for each candidate and task: its settings, and its returns in both rounds."""
    first = first_returns(method)
    second = second_returns(method, survivors(first))
    rows = [
        {"method": method, "task": task, "candidate": k, **settings, "half": first[task][k], "whole": second[task][k]}
        for task in TUNING_TASKS
        for k, settings in enumerate(candidates(method))
    ]
    return pd.DataFrame(rows)
