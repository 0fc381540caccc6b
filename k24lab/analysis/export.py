"""Results in the layouts of other tools: marl-eval, lines of JSON, and tables for LaTeX."""

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from k24lab.analysis.load import RETURN
from k24lab.analysis.stats import difference_interval, mean_interval, values_by_variant
from k24lab.analysis.style import save_text, variant_styles
from k24lab.errors import warn
from k24lab.lab import provenance
from k24lab.lab.config import Config
from k24lab.lab.find_runs import Run

MARL_EVAL_NAMES = {RETURN: "return", "test_battle_won_mean": "win_rate"}
ORIGIN = ("k24lab", "commit", "changed", "packages", "cpu", "gpu", "imported")  # of provenance.jsonl


def marl_eval(metrics: pd.DataFrame, summaries: pd.DataFrame) -> dict[str, Any]:
    """The JSON layout of marl-eval (Gorsane et al., 2022): environment, task, algorithm, run, step.

    `return` (and `win_rate`, where an environment has wins) of the greedy team, at each evaluation the mean over its
    episodes; `absolute_metrics` are the run's last. Names are in lower case, as marl-eval wants them. It reads
    environments whose tasks and algorithms have the same seeds only: what others lack is a `RunWarning`, and left out.
    """
    environments: dict[str, dict[tuple[str, str, Any], dict[str, Any]]] = {}
    keys = ["task", "variant", "run", "seed"]
    for (task, variant, run, seed), rows in metrics.dropna(subset=[RETURN]).groupby(keys, sort=False):
        environment, _, own = str(task).lower().partition("/")
        environment, own = (environment, own) if own else (environment.partition(":")[0], environment)
        last = summaries.loc[(summaries["run"] == run) & (summaries["task"] == task)].iloc[0]
        environments.setdefault(environment, {})[own, str(variant).lower(), seed] = _marl_eval_steps(rows, last)
    data: dict[str, Any] = {}
    for environment, runs in environments.items():
        tasks, names, seeds = map(dict.fromkeys, zip(*runs, strict=True))
        for task, name in itertools.product(tasks, names):
            if lacks := sorted(seed for seed in seeds if (task, name, seed) not in runs):
                warn(f"not for marl-eval: {environment}, {task}: {name} lacks seeds {', '.join(map(str, lacks))}")
        shared = [name for name in names if all((task, name) in {key[:2] for key in runs} for task in tasks)]
        common = [s for s in seeds if all((task, name, s) in runs for task in tasks for name in shared)]
        data[environment] = {
            task: {name: {f"seed_{s}": runs[task, name, s] for s in common} for name in shared} for task in tasks
        }
    return data


def _marl_eval_steps(rows: pd.DataFrame, last: pd.Series) -> dict[str, Any]:
    """The evaluations of one run, and its final numbers."""
    present = {key: name for key, name in MARL_EVAL_NAMES.items() if key in rows and rows[key].notna().all()}
    steps: dict[str, Any] = {}
    for k, (t_env, row) in enumerate(rows.groupby("t_env")[list(present)].mean().iterrows()):
        steps[f"step_{k}"] = {"step_count": int(str(t_env))} | {
            name: [float(row[key])] for key, name in present.items()
        }
    return steps | {"absolute_metrics": {name: [float(last[key])] for key, name in present.items()}}


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


def return_table(summaries: pd.DataFrame, value: str = RETURN) -> pd.DataFrame:
    """Variants by tasks, each cell `mean ± half of the 95 % interval` in LaTeX's mathematics.

    The best mean of a task is bold only if its difference from every other variant there has an interval that leaves
    out 0. A cell of fewer than two runs has no interval; one without runs is a dash.
    """
    scores = summaries.dropna(subset=[value])
    styles = variant_styles(scores["variant"].unique())
    table = pd.DataFrame({"method": [style.label for style in styles.values()]})
    for task, runs in scores.groupby("task", sort=False):
        groups = values_by_variant(runs, value)
        best = max(groups, key=lambda name: groups[name].mean())
        leads = [difference_interval(groups[best], groups[name])[1] for name in groups if name != best]
        clear = best if leads and min(leads) > 0 else None  # a NaN is not above 0
        table[str(task)] = [_cell(groups[v], v == clear) if v in groups else "--" for v in styles]
    return table


def _cell(values: np.ndarray, bold: bool) -> str:
    mean, low, _, n = (x.item() for x in mean_interval(values))
    text = rf"\mathbf{{{mean:.2f}}}" if bold else f"{mean:.2f}"
    return rf"${text} \pm {mean - low:.2f}$" if n > 1 else f"${text}$"


def save_latex(table: pd.DataFrame, name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    r"""Write `name.tex`, a `tabular` that `\input` takes (`\usepackage{booktabs}`); cells in dollars stay as they are.

    The first column is left-aligned, the others right; files are written as by `style.save_figure`.
    """
    cells = table.style.hide(axis="index").format(escape="latex-math", precision=2, thousands=",", na_rep="--")
    styled = cells.format_index(escape="latex", axis="columns")
    text = styled.to_latex(hrules=True, column_format="l" + "r" * (len(table.columns) - 1))
    return save_text(text.replace("α", r"$\alpha$"), f"{name}.tex", folder)
