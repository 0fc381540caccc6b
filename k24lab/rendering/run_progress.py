"""How far some runs are, and the curves of a metric of theirs, as their folders have it by now."""

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from k24lab.analysis.curve_plots import shared_legend, time_axis
from k24lab.analysis.load import metric_rows
from k24lab.analysis.style import (
    GREY,
    METRIC_LABEL,
    ROW_HEIGHT,
    SCREEN_DPI,
    TEXT_WIDTH,
    metric_label,
    variant_styles,
)
from k24lab.errors import RunError, unknown
from k24lab.lab.find_runs import Run, no_runs, variants
from k24lab.lab.paths import runs_dir
from k24lab.lab.runs import find_folder
from k24lab.lab.status import RunStatus, run_status

ENDED = ("finished", "failed")
LEARNING = "loss_td"  # logged with everything else that a run logs but its tests
MOST_LINES = 12  # of single runs; of more runs only those that are running or failed have one
BAR = 12  # letters
MOST_COLUMNS = 3  # of panels, one per task
ONE_PANEL_HEIGHT = 2.3  # inches


class Logged(NamedTuple):
    """What a metrics.jsonl of this size holds."""

    size: int = 0
    values: tuple[tuple[int, float], ...] = ()  # (t_env, metric)
    names: frozenset[str] = frozenset()  # of everything that is logged


class RunProgress:
    """Runs of a group, or one run, and a metric of theirs; `update` reads what is new.

    Args:
        source: a group of runs (by name, or its folder), or one run (its folder, or its id).
        metric: name of a logged quantity.

    Raises:
        RunError: no runs, or none that logs the metric.
    """

    def __init__(self, source: str | Path, metric: str):
        self.source, self.metric = source, metric
        self.statuses: list[RunStatus] = []
        self._unreadable: list[str] = []  # runs that are left out, and why
        self._logged: dict[Path, Logged] = {}
        self._first_seen: dict[Path, tuple[float, int]] = {}  # time and t_env when a run was first seen running
        self.update()

    def update(self) -> bool:
        """Read the folders again, a metrics file only where it has grown; returns whether anything has changed.

        Raises:
            RunError: as above.
        """
        before = self.statuses, self._logged
        self._read_statuses()
        self._logged = {status.path: self._read_metrics(status.path) for status in self.statuses}
        now = {status.path: (time.monotonic(), status.t_env) for status in self.statuses if status.state == "running"}
        self._first_seen = now | {path: seen for path, seen in self._first_seen.items() if path in now}
        self._check_metric()
        return (self.statuses, self._logged) != before

    def tasks(self) -> dict[str, int]:
        """Each task, and the env steps of its longest run."""
        longest: dict[str, int] = {}
        for status in self.statuses:
            longest[status.config.task] = max(status.config.t_max, longest.get(status.config.task, 0))
        return longest

    def variants(self) -> list[str]:
        """A name per run, which seeds of the same settings share."""
        return variants([Run(s.path, dataclasses.asdict(s.config), False) for s in self.statuses])

    def curves(self) -> pd.DataFrame:
        """The metric so far: columns task, variant, run, t_env, value."""
        rows = [
            (status.config.task, variant, status.path.name, *point)
            for status, variant in zip(self.statuses, self.variants(), strict=True)
            for point in self._logged[status.path].values
        ]
        return pd.DataFrame(rows, columns=["task", "variant", "run", "t_env", "value"])

    def headline(self) -> str:
        """`2 running, 1 finished of 3 runs`."""
        states = [status.state for status in self.statuses]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))
        return f"{counts} of {len(states)} run{'s' if len(states) > 1 else ''}"

    def lines(self) -> list[str]:
        """How far each run is, a line each; of many runs only those that are running or failed."""
        runs = list(zip(self.statuses, self.variants(), strict=True))
        if len(runs) > MOST_LINES:
            runs = [(s, variant) for s, variant in runs if s.state in ("running", "failed")][:MOST_LINES]
        several = len(self.tasks()) > 1
        labels = [f"{s.config.task + '  ' if several else ''}{variant}  seed {s.config.seed}" for s, variant in runs]
        width = max(map(len, labels), default=0)
        lines = [self._line(s, label.ljust(width)) for (s, _), label in zip(runs, labels, strict=True)]
        return lines + self._unreadable

    def _line(self, status: RunStatus, label: str) -> str:
        share = status.t_env / status.config.t_max
        bar = "█" * round(BAR * share) + "░" * (BAR - round(BAR * share))
        parts = [label, f"{status.state:8}", f"{bar} {share:4.0%} of {EngFormatter(sep='')(status.config.t_max)}"]
        if values := self._logged[status.path].values:
            parts.append(f"{metric_label(self.metric)} {values[-1][1]:#.3g}")
        since, before = self._first_seen.get(status.path, (0.0, status.t_env))
        if status.t_env > before:
            seconds = (time.monotonic() - since) * (status.config.t_max - status.t_env) / (status.t_env - before)
            parts.append(f"{_duration(seconds)} left")
        return "  ".join([*parts, status.error] if status.error else parts)

    def _read_statuses(self) -> None:
        self.statuses, self._unreadable = [], []
        for folder in _folders(self.source):
            try:
                self.statuses.append(run_status(folder))
            except RunError as error:  # of another version, say
                self._unreadable.append(f"left out: {error}")
        if not self.statuses:
            raise RunError("; ".join(self._unreadable))

    def _read_metrics(self, folder: Path) -> Logged:
        path, before = folder / "metrics.jsonl", self._logged.get(folder, Logged())
        size = path.stat().st_size if path.is_file() else 0
        if size == before.size:
            return before
        rows = metric_rows(path)
        values = tuple((row["t_env"], float(row[self.metric])) for row in rows if self.metric in row)
        return Logged(size, values, frozenset().union(*rows))

    def _check_metric(self) -> None:
        """Refuse a metric that no run logs, once that can be known: before its first update a run has logged tests."""
        logged = [names for _, _, names in self._logged.values() if names]
        known = frozenset().union(*logged)
        if not logged or self.metric in known:
            return
        learning = all(LEARNING in names for names in logged)
        possible = self.metric in METRIC_LABEL and len(logged) < len(self.statuses)  # in a run that has not started
        if (learning and not possible) or all(status.state in ENDED for status in self.statuses):
            raise RunError(unknown("metric", self.metric, known))


def _folders(source: str | Path) -> list[Path]:
    """Run folders of a group, or the one of a run."""
    path = source if isinstance(source, Path) else runs_dir() / source
    if (path / "config.json").is_file():
        return [path]
    if found := sorted(file.parent for file in path.glob("*/config.json")):
        return found
    if isinstance(source, str) and any(runs_dir().glob(f"*/{source}/config.json")):
        return [find_folder(source)]
    raise RunError(no_runs(path))


def _duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress_figure(runs: RunProgress, baseline: pd.DataFrame) -> Figure:
    """A panel per task with a line per run and a dot at its end, in a figure that pyplot does not keep.

    `baseline` is what `stats.curves` returns (task, variant, t_env, mean, ...), drawn in grey; it may be empty.
    """
    curves, tasks = runs.curves(), runs.tasks()
    n_columns = min(len(tasks), MOST_COLUMNS)
    n_lines = -(-len(tasks) // n_columns)
    height = ONE_PANEL_HEIGHT if n_lines == 1 else n_lines * ROW_HEIGHT
    fig = Figure(figsize=(TEXT_WIDTH, height), dpi=SCREEN_DPI, layout="constrained")
    grid = fig.subplots(n_lines, n_columns, squeeze=False)
    for spare in grid.flat[len(tasks) :]:
        spare.set_axis_off()
    for ax, (task, t_max) in zip(grid.flat, tasks.items(), strict=False):
        means, own = (table[table["task"] == task] for table in (baseline, curves))
        for variant, style in variant_styles(means["variant"]).items():
            rows = means[means["variant"] == variant]
            label = f"baseline: {style.label}"
            ax.plot(rows["t_env"], rows["mean"], color=GREY, linestyle=style.linestyle, linewidth=1.0, label=label)
        for variant, style in variant_styles(own["variant"]).items():  # seeds look alike
            for k, (_, rows) in enumerate(own[own["variant"] == variant].groupby("run", sort=False)):
                x, y, label = rows["t_env"], rows["value"], "" if k else style.label
                ax.plot(x, y, color=style.color, linestyle=style.linestyle, linewidth=1.2, label=label)
                ax.plot(x.iloc[-1], y.iloc[-1], color=style.color, marker="o", markersize=3)
        ax.set(xlim=(0, t_max), title=task)
        time_axis(ax, metric_label(runs.metric))
    return shared_legend(fig)
