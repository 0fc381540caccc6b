"""How far runs are, from their folders alone: wherever they are computed, and by whom."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd

from k24lab.analysis.find_runs import Run, no_runs, variants
from k24lab.errors import RunError
from k24lab.lab.config import Config
from k24lab.lab.grid import load_grid
from k24lab.lab.notebooks import executed_copies
from k24lab.lab.paths import runs_dir
from k24lab.lab.runs import FAILED, find_or_name, is_locked, read_config

State = Literal["finished", "running", "failed", "begun", "waiting"]
STATES: tuple[State, ...] = ("finished", "running", "failed", "begun", "waiting")
TAIL_BYTES = 16_384  # of the metrics file; its lines have a few hundred


class RunStatus(NamedTuple):
    """Where a run stands. Begun: it has metrics, and nobody is at work on it."""

    path: Path
    config: Config
    state: State
    t_env: int  # env steps at its last log line
    error: str = ""  # of a failed run

    @property
    def task(self) -> str:
        """Name of the task, with its options."""
        return self.config.task

    @property
    def t_max(self) -> int:
        """Env steps of the whole run."""
        return self.config.t_max


def run_status(path: Path, notebook: str | None = None) -> RunStatus:
    """The status of one run folder; a run in a notebook is finished once all cells of that have run.

    Raises:
        RunError: no configuration in it.
    """
    config = read_config(path)
    trained = (path / "DONE").exists()
    copy, failed_copy = executed_copies(path, notebook) if notebook else (path / "DONE", path / FAILED)
    finished = trained and copy.exists()
    t_env = config.t_max if trained else min(last_t_env(path / "metrics.jsonl"), config.t_max)
    error = ""
    if finished:
        state: State = "finished"
    elif is_locked(path):
        state = "running"
    elif (path / FAILED).exists():
        state, error = "failed", (path / FAILED).read_text(errors="replace").strip()
    elif trained and failed_copy.exists():
        state, error = "failed", f"trained, but its notebook failed: see {failed_copy}"
    else:
        state = "begun" if t_env else "waiting"
    return RunStatus(path, config, state, t_env, error)


def last_t_env(path: Path) -> int:
    """Env steps in the last whole line of a metrics file; 0 without one."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["t_env"])
        except (ValueError, KeyError, TypeError):  # torn, or still being written
            continue
    return 0


def status_table(statuses: Sequence[RunStatus]) -> pd.DataFrame:
    """One row per task and variant: how many runs are in each state, and the share of their env steps that is done."""
    names = variants([Run(s.path, dataclasses.asdict(s.config), s.state == "finished") for s in statuses])
    rows = pd.DataFrame(
        [(s.task, name, s.state, s.t_env, s.t_max) for s, name in zip(statuses, names, strict=True)],
        columns=["task", "variant", "state", "t_env", "t_max"],
    )
    groups = rows.groupby(["task", "variant"], sort=False)
    table = groups["state"].value_counts().unstack(fill_value=0).reindex(columns=list(STATES), fill_value=0)
    table["% done"] = (100 * groups["t_env"].sum() / groups["t_max"].sum()).round().astype(int)
    return table.reset_index().rename_axis(columns=None)


def print_status(grid: Path) -> None:
    """Print the table of a grid file, or of a group of runs by its name, and the error of every run that failed.

    Raises:
        ConfigError: a grid file that cannot be used.
        RunError: no run.
    """
    if grid.suffix in (".yaml", ".yml"):
        name, configs, notebook = load_grid(grid)
        runs = [find_or_name(config, name) for config in configs]
        statuses = [
            run_status(path, notebook) if path.exists() else RunStatus(path, config, "waiting", 0)
            for path, config in runs
        ]
    else:
        statuses = group_statuses(grid)
    print(status_table(statuses).to_string(index=False))
    for status in statuses:
        if status.state == "failed":
            print(f"failed: {status.path}: {status.error}")


def group_statuses(name: Path) -> list[RunStatus]:
    """All runs of a group; those whose configuration cannot be read are named and left out."""
    statuses = []
    for file in sorted((runs_dir() / name).glob("*/config.json")):
        try:
            statuses.append(run_status(file.parent))
        except RunError as error:
            print(f"left out: {error}")
    if not statuses:
        raise RunError(no_runs(runs_dir() / name))
    return statuses
