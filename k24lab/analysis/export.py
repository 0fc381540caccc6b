"""Results in the layouts of other tools, and as lines of JSON."""

import dataclasses
import json
from typing import Any

import pandas as pd

from k24lab.config import Config

RETURN = "test_return_mean"


def marl_eval(metrics: pd.DataFrame, summaries: pd.DataFrame) -> dict[str, Any]:
    """The JSON layout of marl-eval (Gorsane et al., 2022): environment, task, algorithm, run, step.

    `return` (and `win_rate`, where a world has wins) of the greedy team, at each evaluation the mean over its episodes;
    `absolute_metrics` are the run's last. Names are in lower case, as marl-eval wants them. Of two runs with the same
    task, variant and seed (`groups.unequal_settings` warns of them) the last one stands there.
    """
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


def run_lines(metrics: pd.DataFrame, summaries: pd.DataFrame) -> str:
    """One line of JSON per run: its settings, its final numbers, and under `evaluations` its tests over env steps.

    `pandas.read_json(path, lines=True)` reads it, and `k24lab import` makes run folders of it again. A number that a
    run lacks is left out; a setting that is None is null.
    """
    evaluations = metrics.dropna(subset=[RETURN]).groupby(["task", "run"], sort=False)
    settings = {field.name for field in dataclasses.fields(Config)}
    tests = [key for key in map(str, metrics) if key.startswith("test_") and key not in settings]
    lines = []
    for row in summaries.to_dict("records"):
        rows = evaluations.get_group((row["task"], row["run"]))
        given = {key: None if value is None or value != value else value for key, value in row.items()}  # NaN != NaN
        line = {key: value for key, value in given.items() if value is not None or key in settings}
        tests = [
            key for key in map(str, rows) if key.startswith("test_") and key not in settings and rows[key].notna().all()
        ]
        line["evaluations"] = {key: rows[key].tolist() for key in ("t_env", *tests)}
        lines.append(json.dumps(line) + "\n")
    return "".join(lines)
