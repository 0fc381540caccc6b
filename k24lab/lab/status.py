"""How far runs are and what they are, from their folders alone: `k24lab status` and `k24lab show`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from k24lab.errors import RunError
from k24lab.lab import provenance
from k24lab.lab.config import NOT_HASHED, Config, build_config
from k24lab.lab.find_runs import Run, no_runs, variants
from k24lab.lab.grid import load_grid
from k24lab.lab.notebooks import executed_copies
from k24lab.lab.paths import runs_dir
from k24lab.lab.runs import FAILED, is_locked, read_config, run_folder

State = Literal["finished", "running", "failed", "stopped", "waiting"]
TAIL_BYTES = 16_384  # of the metrics file; its lines have a few hundred


class RunStatus(NamedTuple):
    """Where a run stands. Stopped: it has metrics, and no process trains it now."""

    path: Path
    config: Config
    state: State
    t_env: int  # env steps at its last log line, t_max at most
    error: str = ""  # of a failed run


def run_status(path: Path, notebook: str | None = None) -> RunStatus:
    """The status of one run folder; a run in a notebook is finished once all cells of that have run.

    Raises:
        RunError: no configuration in it.
    """
    config = read_config(path)
    trained = (path / "DONE").exists()
    copy, failed_copy = executed_copies(path, notebook) if notebook else (path / "DONE", path / FAILED)
    t_env = config.t_max if trained else min(last_t_env(path / "metrics.jsonl"), config.t_max)
    state: State = "stopped" if t_env else "waiting"
    error = ""
    if trained and copy.exists():
        state = "finished"
    elif is_locked(path):
        state = "running"
    elif (path / FAILED).exists():
        state, error = "failed", (path / FAILED).read_text(errors="replace").strip()
    elif trained and failed_copy.exists():
        state, error = "failed", f"trained, but its notebook failed: see {failed_copy}"
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


def print_status(grid: Path) -> None:
    """Print the table of a grid file, or of a group of runs by its name, and the error of every run that failed."""
    statuses = grid_statuses(grid) if grid.suffix in (".yaml", ".yml") else group_statuses(grid)
    table = status_table(statuses)
    columns = {key: [key, *(str(row[key]) for row in table)] for key in table[0]}
    widths = {key: max(map(len, texts)) for key, texts in columns.items()}
    for texts in zip(*columns.values(), strict=True):
        print(" ".join(text.rjust(width) for text, width in zip(texts, widths.values(), strict=True)))
    for status in statuses:
        if status.state == "failed":
            print(f"failed: {status.path}: {status.error}")


def grid_statuses(file: Path) -> list[RunStatus]:
    """All runs of a grid file, those without a folder as waiting."""
    name, configs, notebook = load_grid(file, check=False)
    if not all(run_folder(config, name).exists() for config in configs):  # not started, or a task is spelled otherwise
        name, configs, notebook = load_grid(file)
    runs = [(run_folder(config, name), config) for config in configs]
    return [
        run_status(path, notebook) if path.exists() else RunStatus(path, config, "waiting", 0) for path, config in runs
    ]


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


def status_table(statuses: Sequence[RunStatus]) -> list[dict[str, Any]]:
    """One row per task and variant: how many runs are in each state, and the share of their env steps that is done."""
    names = variants([Run(s.path, dataclasses.asdict(s.config), s.state == "finished") for s in statuses])
    groups: dict[tuple[str, str], list[RunStatus]] = {}
    for status, name in zip(statuses, names, strict=True):
        groups.setdefault((status.config.task, name), []).append(status)
    return [
        {"task": task, "variant": variant}
        | {state: sum(s.state == state for s in members) for state in get_args(State)}
        | {"% done": round(100 * sum(s.t_env for s in members) / sum(s.config.t_max for s in members))}
        for (task, variant), members in groups.items()
    ]


def describe_run(folder: Path) -> str:
    """What a run is, how far it is, its last metrics, and where it comes from, as text.

    Raises:
        RunError: no run folder.
    """
    config = read_config(folder)
    text = [folder.name, f"  {state_line(folder)}", "", "settings (the method's defaults are left out)"]
    text += _lines(own_settings(config))
    summary = folder / "summary.json"
    if summary.exists():
        text += ["", "at the end", *_lines(json.loads(summary.read_text()))]
    for k, attempt in enumerate(provenance.read(folder)):
        text += ["", f"attempt {k + 1}", *_lines(attempt)]
    return "\n".join(text)


def state_line(folder: Path) -> str:
    """Whether a run is finished, running, failed or waiting, and how far it is.

    A finished run may have more env steps than t_max, because its last rollout was played to its end.
    """
    now = run_status(folder)
    t_env, t_max = max(now.t_env, last_t_env(folder / "metrics.jsonl")), now.config.t_max
    far = f"{t_env} env steps, t_max = {t_max}" if t_env > t_max else f"{t_env} of {t_max} env steps"
    return f"{now.state}, {far}" + (f": {now.error}" if now.error else "")


def own_settings(config: Config) -> dict[str, Any]:
    """The task, method, seed and length of a run, and every setting that is not its method's default."""
    usual = build_config({"method": config.method, "learner": config.learner})
    keys = [key for key in vars(config) if key not in NOT_HASHED and getattr(config, key) != getattr(usual, key)]
    return {key: getattr(config, key) for key in dict.fromkeys(["task", "method", "seed", "t_max", *keys])}


def _lines(values: Mapping[str, Any]) -> list[str]:
    width = max(map(len, values), default=0)
    return [f"  {key:{width}}  {as_text(value)}" for key, value in values.items()]


def as_text(value: Any) -> str:
    """A value of a configuration or a summary for a person."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {as_text(item)}" for key, item in value.items())
    return ", ".join(map(as_text, value)) or "none" if isinstance(value, list) else str(value)
