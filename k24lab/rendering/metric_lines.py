"""What the folders of some runs hold by now; a file is read again only when it has changed."""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from k24lab.analysis.find_runs import Run, no_runs, variants
from k24lab.analysis.load import metric_rows
from k24lab.analysis.style import METRIC_LABEL, metric_label
from k24lab.errors import RunError, unknown
from k24lab.lab.paths import runs_dir
from k24lab.lab.runs import find_folder
from k24lab.lab.status import RunStatus, run_status

COLUMNS = ["task", "variant", "run", "t_env", "value"]
LEARNING = "loss_td"  # a line that holds it holds all that a run logs but its tests
MOST_LINES = 12  # of single runs; of more, those that nobody need see are counted
BAR = 12  # letters


class Followed:
    """Runs of a group, or one run, and a metric of theirs.

    Args:
        source: as for `live.watch`.
        metric: name of a logged quantity.

    Raises:
        RunError: no runs.
    """

    def __init__(self, source: str | Path, metric: str):
        self.source, self.metric = source, metric
        self.left_out: list[str] = []  # runs that cannot be read, and why
        self._rows: dict[Path, tuple[int, list[tuple[int, float]]]] = {}  # size of the file, and what it holds
        self._logged: dict[Path, set[str]] = {}
        self._first: dict[Path, tuple[float, int]] = {}  # when a run was first seen at work, and how far it was
        self.statuses = self._statuses()

    def look(self) -> None:
        """Read what is new.

        Raises:
            RunError: no run logs the metric.
        """
        self.statuses = self._statuses()
        for status in self.statuses:
            self._read(status.path / "metrics.jsonl")
            if status.state == "running":
                self._first.setdefault(status.path, (time.monotonic(), status.t_env))
            else:
                self._first.pop(status.path, None)
        self._check_metric()

    def state(self) -> object:
        """Equal for two looks between which nothing happened."""
        return [(*status, self._rows.get(status.path / "metrics.jsonl", (0,))[0]) for status in self.statuses]

    def curves(self) -> pd.DataFrame:
        """The metric so far: columns task, variant, run, t_env, value."""
        frames = [pd.DataFrame(columns=COLUMNS).astype({"t_env": int, "value": float})]
        for status, variant in zip(self.statuses, self.variants(), strict=True):
            rows = pd.DataFrame(self._rows.get(status.path / "metrics.jsonl", (0, []))[1], columns=["t_env", "value"])
            if not rows.empty:
                frames.append(rows.assign(task=status.task, variant=variant, run=status.path.name)[COLUMNS])
        return pd.concat(frames[1:] or frames, ignore_index=True)

    def variants(self) -> list[str]:
        """A name per run, which seeds of the same settings share."""
        return variants([Run(s.path, dataclasses.asdict(s.config), False) for s in self.statuses])

    def t_max(self) -> dict[str, int]:
        """Env steps of the longest run of each task."""
        return {task: max(s.t_max for s in self.statuses if s.task == task) for task in self.tasks()}

    def tasks(self) -> list[str]:
        """Every task once."""
        return list(dict.fromkeys(status.task for status in self.statuses))

    def counts(self) -> str:
        """`2 running, 1 finished of 3 runs`."""
        states = [status.state for status in self.statuses]
        each = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))
        return f"{each} of {len(states)} run{'s' if len(states) > 1 else ''}"

    def lines(self) -> list[str]:
        """How far each run is, a line each; of many runs only those at work and those that went wrong."""
        names = self.variants()
        rows = list(zip(self.statuses, names, strict=True))
        if len(rows) > MOST_LINES:
            rows = [row for row in rows if row[0].state in ("running", "failed")][:MOST_LINES]
        several = len(self.tasks()) > 1
        labels = [f"{s.task + '  ' if several else ''}{name}  seed {s.config.seed}" for s, name in rows]
        width = max(map(len, labels), default=0)
        return [self._line(s, label.ljust(width)) for (s, _), label in zip(rows, labels, strict=True)] + self.left_out

    def _line(self, status: RunStatus, label: str) -> str:
        share = status.t_env / status.t_max
        bar = "█" * round(BAR * share) + "░" * (BAR - round(BAR * share))
        far = f"{label}  {status.state:8}  {bar} {share:4.0%} of {_short(status.t_max)}"
        rows = self._rows.get(status.path / "metrics.jsonl", (0, []))[1]
        value = f"  {metric_label(self.metric)} {rows[-1][1]:#.3g}" if rows else ""
        return far + value + self._time_left(status) + (f"  {status.error}" if status.error else "")

    def _time_left(self, status: RunStatus) -> str:
        since, before = self._first.get(status.path, (0.0, status.t_env))
        if status.t_env <= before:
            return ""
        left = (time.monotonic() - since) * (status.t_max - status.t_env) / (status.t_env - before)
        return f"  {_clock(left)} left"

    def _statuses(self) -> list[RunStatus]:
        statuses, self.left_out = [], []
        for folder in _folders(self.source):
            try:
                statuses.append(run_status(folder))
            except RunError as error:  # of another version, say
                self.left_out.append(f"left out: {error}")
        if not statuses:
            raise RunError("; ".join(self.left_out))
        return statuses

    def _read(self, path: Path) -> None:
        size = path.stat().st_size if path.is_file() else 0
        if size == self._rows.get(path, (0,))[0]:
            return
        rows = metric_rows(path)
        self._rows[path] = size, [(row["t_env"], float(row[self.metric])) for row in rows if self.metric in row]
        self._logged[path] = {name for row in rows for name in row}

    def _check_metric(self) -> None:
        """Refuse a metric that no run logs, once that can be known: before its first update a run has logged tests."""
        logged = set().union(*self._logged.values())
        if self.metric in logged:
            return
        begun = bool(logged) and all(LEARNING in names for names in self._logged.values())
        every = len(self._logged) == len(self.statuses)
        over = all(status.state in ("finished", "failed") for status in self.statuses)
        if (begun and (every or self.metric not in METRIC_LABEL)) or (over and logged):
            raise RunError(unknown("metric", self.metric, logged))


def _folders(source: str | Path) -> Iterable[Path]:
    """Run folders of a group, or the one of a run."""
    path = source if isinstance(source, Path) else runs_dir() / source
    if (path / "config.json").is_file():
        return [path]
    found = sorted(file.parent for file in path.glob("*/config.json"))
    if not found and isinstance(source, str) and source in {folder.name for folder in runs_dir().glob("*/*")}:
        return [find_folder(source)]
    if not found:
        raise RunError(no_runs(path))
    return found


def _short(steps: int) -> str:
    """`128k`."""
    return f"{steps / 1000:.0f}k" if steps >= 10_000 else str(steps)


def _clock(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
