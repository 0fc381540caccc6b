"""Results in the layouts of other tools, and as lines of JSON."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from k24lab.analysis.load import Run
from k24lab.errors import RunError
from k24lab.lab import provenance
from k24lab.lab.config import Config

RETURN = "test_return_mean"
ORIGIN = ("k24lab", "commit", "changed", "packages", "cpu", "gpu", "imported")  # of provenance.jsonl


def marl_eval(metrics: pd.DataFrame, summaries: pd.DataFrame) -> dict[str, Any]:
    """The JSON layout of marl-eval (Gorsane et al., 2022): environment, task, algorithm, run, step.

    `return` (and `win_rate`, where an environment has wins) of the greedy team, at each evaluation the mean over its
    episodes; `absolute_metrics` are the run's last. Names are in lower case, as marl-eval wants them. Of two runs with
    the same task, variant and seed (`groups.unequal_settings` warns of them) the last one stands there.

    Raises:
        RunError: marl-eval cannot read it, since tasks or algorithms of an environment do not have the same seeds.
    """
    data = _marl_eval(metrics, summaries)
    if missing := _missing_seeds(data):
        raise RunError(
            "marl-eval reads environments whose tasks and algorithms have the same seeds only: "
            f"{'; '.join(missing)} (train these, or export groups one by one)"
        )
    return data


def shared_marl_eval(metrics: pd.DataFrame, summaries: pd.DataFrame) -> tuple[dict[str, Any], list[str]]:
    """`marl_eval` of the algorithms and seeds that all tasks of an environment share, and what is missing elsewhere."""
    data = _marl_eval(metrics, summaries)
    shared: dict[str, Any] = {}
    for environment, tasks in data.items():
        algorithms = set.intersection(*(set(by_algorithm) for by_algorithm in tasks.values()))
        found = [set(by_algorithm[name]) for by_algorithm in tasks.values() for name in algorithms]
        seeds = set.intersection(*found) if found else set()
        shared[environment] = {
            task: {
                name: {seed: steps for seed, steps in runs.items() if seed in seeds}
                for name, runs in by_algorithm.items()
                if name in algorithms
            }
            for task, by_algorithm in tasks.items()
        }
    return shared, _missing_seeds(data)


def _missing_seeds(data: Mapping[str, Any]) -> list[str]:
    """A sentence for each task and algorithm that lacks seeds which others of the environment have."""
    missing = []
    for environment, tasks in data.items():
        runs = {(task, name): set(by[name]) for task, by in tasks.items() for name in by}
        seeds, names = set().union(*runs.values()), dict.fromkeys(name for _, name in runs)
        for task in tasks:
            for name in names:
                lacks = sorted(int(seed.removeprefix("seed_")) for seed in seeds - runs.get((task, name), set()))
                if lacks:
                    where = task if task.partition(":")[0] == environment else f"{environment}/{task}"
                    missing.append(f"{where}: {name} lacks seeds {', '.join(map(str, lacks))}")
    return missing


def _marl_eval(metrics: pd.DataFrame, summaries: pd.DataFrame) -> dict[str, Any]:
    data: dict[str, Any] = {}
    names = {RETURN: "return", "test_battle_won_mean": "win_rate"}
    for (task, variant, run, seed), rows in metrics.dropna(subset=[RETURN]).groupby(
        ["task", "variant", "run", "seed"], sort=False
    ):
        present = {key: name for key, name in names.items() if key in rows and rows[key].notna().all()}
        steps: dict[str, Any] = {}
        for k, (t_env, row) in enumerate(rows.groupby("t_env")[list(present)].mean().iterrows()):
            steps[f"step_{k}"] = {"step_count": int(str(t_env))} | {
                name: [float(row[key])] for key, name in present.items()
            }
        last = summaries.loc[(summaries["run"] == run) & (summaries["task"] == task)].iloc[0]
        steps["absolute_metrics"] = {name: [float(last[key])] for key, name in present.items()}
        environment, _, own = str(task).lower().partition("/")
        environment, own = (environment, own) if own else (environment.partition(":")[0], environment)
        algorithms = data.setdefault(environment, {}).setdefault(own, {})
        algorithms.setdefault(str(variant).lower(), {})[f"seed_{seed}"] = steps
    return data


def run_lines(metrics: pd.DataFrame, summaries: pd.DataFrame, dynamics: Sequence[str] = ()) -> str:
    """One line of JSON per run: settings, final numbers, under `evaluations` its tests and under `training` `dynamics`.

    `pandas.read_json(path, lines=True)` reads it, and `k24lab import` makes run folders of it again. A number that a
    run lacks is left out; a setting that is None is null.
    """
    settings = {field.name for field in dataclasses.fields(Config)}
    tests = [key for key in map(str, metrics) if key.startswith("test_") and key not in settings]
    logged = metrics.groupby(["task", "run"], sort=False)
    lines = []
    for row in summaries.to_dict("records"):
        rows = logged.get_group((row["task"], row["run"]))
        given = {key: None if value is None or value != value else value for key, value in row.items()}  # NaN != NaN
        line = {key: value for key, value in given.items() if value is not None or key in settings}
        line["evaluations"] = _series(rows[rows[RETURN].notna()], tests)
        line["training"] = _series(rows, dynamics)
        lines.append(json.dumps(line) + "\n")
    return "".join(lines)


def _series(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, list[Any]]:
    """Those of some metrics that a run has, as columns over env steps; null where one was not logged."""
    present = [name for name in names if name in rows and rows[name].notna().any()]
    rows = rows.dropna(subset=present, how="all")
    return {key: [None if x != x else x for x in rows[key].tolist()] for key in ("t_env", *present)} if present else {}


def sources(runs: Sequence[Run]) -> str:
    """Lines of JSON that tell where a figure's numbers come from: runs, and the code and machine of their attempts."""
    lines = []
    for run in sorted(runs, key=lambda run: run.path):
        attempts = [{key: line[key] for key in ORIGIN if line.get(key)} for line in provenance.read(run.path)]
        lines.append({"run": f"{run.path.parent.name}/{run.id}", "attempts": attempts})
    return "".join(json.dumps(line) + "\n" for line in lines)
