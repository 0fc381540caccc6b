"""Tuning by successive halving: every candidate with one seed, then the best ones with another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from k24lab.lab.backends import Backend
from study import store
from study.protocol import SURVIVORS, TUNING_TASKS, candidates, first_round, second_round
from study.references import TABLE

FOLDER = Path(__file__).resolve().parents[1] / "figures" / "tuning"
Returns = Mapping[str, np.ndarray]  # task -> a return of each candidate of a method, NaN where it has no run
Scale = Mapping[str, tuple[float, float]]  # task -> the returns that count as 0 and as 1


class Choice(NamedTuple):
    """What tuning chose for a method."""

    per_task: dict[str, int]  # candidate that is best on a task
    one: int  # candidate for all tasks


def group(task: str) -> str:
    """The group of runs of a task's tuning."""
    return f"tuning_{task}"


def summaries(task: str) -> Path:
    """The file with the summaries of a task's tuning."""
    return FOLDER / f"{task}_runs.jsonl"


def tune(tasks: Sequence[str], methods: Sequence[str], backend: Backend) -> None:
    """Train what is missing: first rounds of the tasks, then, for methods with a whole first round, second rounds."""
    for task in TUNING_TASKS:
        store.restore(group(task), summaries(task))
    for task in tasks:
        runs = [config for method in methods for config in first_round(task, method)]
        store.train(group(task), runs, backend, summaries(task))
    for method in methods:
        first = first_returns(method)
        if is_whole(first):
            for task in tasks:
                runs = second_round(task, method, survivors(first)[task])
                store.train(group(task), runs, backend, summaries(task))


def first_returns(method: str) -> dict[str, np.ndarray]:
    """Of every task, the returns of the nine candidates in the first round."""
    return {
        task: np.array([store.final_return(config, group(task)) for config in first_round(task, method)])
        for task in TUNING_TASKS
    }


def second_returns(method: str, first: Returns) -> dict[str, np.ndarray]:
    """Of every task, the mean returns over both rounds of the candidates that are left."""
    returns = {}
    for task, left in survivors(first).items():
        runs = [store.final_return(config, group(task)) for config in second_round(task, method, left)]
        returns[task] = np.full(len(candidates(method)), np.nan)
        returns[task][left] = (first[task][left] + np.array(runs)) / 2
    return returns


def is_whole(returns: Returns) -> bool:
    """Whether all runs behind these returns have ended."""
    return not any(np.isnan(values).any() for values in returns.values())


def best_overall(first: Returns) -> list[int]:
    """The candidates with the best mean rank over the tasks of the first round; of equal ones those listed first."""
    ranks = np.mean([(-pd.Series(values)).rank().to_numpy() for values in first.values()], axis=0)
    return [int(k) for k in np.argsort(ranks, kind="stable")[:SURVIVORS]]


def survivors(first: Returns) -> dict[str, list[int]]:
    """Who goes on to the second round: of each task its two best, and the two that are best over all tasks."""
    overall = best_overall(first)
    own = {task: np.argsort(-values, kind="stable")[:SURVIVORS] for task, values in first.items()}
    return {task: sorted({*map(int, best), *overall}) for task, best in own.items()}


def choose(first: Returns, second: Returns, scale: Scale) -> Choice:
    """The best candidate of each task, and of the two that are best overall the one with the higher mean score.

    Args:
        first: returns of the first round.
        second: mean returns over both rounds.
        scale: of each task the returns that count as 0 and as 1.
    """
    per_task = {task: int(np.nanargmax(values)) for task, values in second.items()}
    scores = [
        np.mean([(second[task][k] - low) / (high - low) for task, (low, high) in scale.items()])
        for k in best_overall(first)
    ]
    return Choice(per_task, best_overall(first)[int(np.argmax(scores))])


def tuned(methods: Sequence[str]) -> dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Returns of both rounds, of the methods whose tuning is complete."""
    found = {}
    for method in methods:
        first = first_returns(method)
        if not is_whole(first):
            continue
        second = second_returns(method, first)
        if is_whole({task: second[task][left] for task, left in survivors(first).items()}):
            found[method] = first, second
    return found


def task_scales(second: Sequence[Returns]) -> dict[str, tuple[float, float]]:
    """0 is the return of random actions, 1 the best mean over both rounds of any method."""
    table = pd.read_csv(TABLE)
    low = table[table["reference"] == "random"].set_index("task")["mean"]
    best = {task: max(float(np.nanmax(each[task])) for each in second) for task in TUNING_TASKS}
    return {task: (float(low[task]), high) for task, high in best.items()}


def write_choices(methods: Sequence[str]) -> list[str]:
    """Write every candidate with its returns, and what was chosen; returns the methods whose tuning is complete."""
    found = tuned(methods)
    if not found:
        return []
    scale = task_scales([second for _, second in found.values()])
    rows = []
    for method, (first, second) in found.items():
        choice = choose(first, second, scale)
        for task in TUNING_TASKS:
            for k, settings in enumerate(candidates(method)):
                returns = {"first": first[task][k], "mean": second[task][k]}
                chosen = {"of_task": k == choice.per_task[task], "one": k == choice.one}
                own = {key: value for key, value in settings.items() if key != "lr"}
                setting = ", ".join(f"{key}={value:g}" for key, value in own.items())
                lr = settings["lr"]
                rows.append({"method": method, "task": task, "lr": lr, "setting": setting, **returns, **chosen})
    FOLDER.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(FOLDER / "candidates.csv", index=False)
    return list(found)
