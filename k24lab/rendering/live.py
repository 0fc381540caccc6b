"""Watching runs while they train, whoever trains them, and training one beside the kernel of a notebook."""

import contextlib
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from k24lab.analysis import stats
from k24lab.analysis.find_runs import find_runs
from k24lab.analysis.load import load_metrics
from k24lab.analysis.style import metric_label, paper_style
from k24lab.errors import RunError
from k24lab.lab.backends import STOP_SECONDS, Command, command_of, end
from k24lab.lab.checks import check_usable
from k24lab.lab.config import Config
from k24lab.lab.runs import RunFolder, canonical, find_or_name, is_locked
from k24lab.lab.status import RunStatus, run_status
from k24lab.lab.sweep import last_line
from k24lab.rendering.live_plots import live_figure
from k24lab.rendering.metric_lines import Followed
from k24lab.rendering.png_widget import make_screen

TEST_RETURN = "test_return_mean"
SECONDS = 3.0  # between two looks at the folders
ENDED = ("finished", "failed")


@dataclass(frozen=True)
class Watched:
    """What was seen last."""

    statuses: list[RunStatus]
    curves: pd.DataFrame  # columns task, variant, run, t_env, value
    figure: Figure
    ended: str  # why watching ended
    n_updates: int  # times that something new was shown

    def __repr__(self) -> str:
        return f"Watched({len(self.statuses)} runs, {self.n_updates} updates, {self.ended})"


def watch(
    source: str | Path = "default",
    metric: str = TEST_RETURN,
    *,
    baseline: str | Path | None = None,
    seconds: float = SECONDS,
    timeout: float | None = None,
) -> Watched:
    """Show curves and progress of runs while they grow, until each has finished or failed.

    The runs may be trained by whatever process, `k24lab sweep` in a terminal say. In a notebook the figure is updated
    in place; elsewhere each change is a line of text. Interrupting it ends the watching alone.

    Args:
        source: a group of runs (by name, or its folder), or one run (its folder, or its id).
        metric: any logged quantity.
        baseline: a group whose finished runs of the same tasks are drawn in grey, a mean curve per variant.
        seconds: between two looks; nothing is drawn where nothing changed.
        timeout: seconds after which to end in any case; 0 shows what there is now.

    Raises:
        RunError: no runs, a metric that no run logs (the nearest name is given), a baseline without runs of the tasks.
    """
    return _follow(Followed(source, metric), baseline, seconds, timeout)


def train_live(
    config: Config,
    name: str = "default",
    metric: str = TEST_RETURN,
    *,
    baseline: str | Path | None = None,
    seconds: float = SECONDS,
) -> Watched:
    """Train a run, or go on with it, in a process beside this one, and watch it: curves while it learns.

    Interrupting it stops the run as well; the same call goes on from its last checkpoint. A finished run is only shown.

    Args:
        config: the run.
        name: group of runs, a folder under `runs/`.
        metric: as for `watch`, like `baseline` and `seconds`.
        baseline: as for `watch`.
        seconds: as for `watch`.

    Raises:
        ConfigError: a task or device that cannot be used.
        RunError: the run failed, or was killed; what `watch` raises (the run is stopped then).
    """
    run = start(config, name)
    try:
        watched = _follow(Followed(run.folder, metric), baseline, seconds, None, run)
        run.check(watched.ended == "interrupted")
    finally:
        run.stop()
    return watched


def start(config: Config, name: str = "default") -> "Background":
    """Start a run, or go on with it, in a process beside this one, and return at once: `watch(run.folder)` looks at it.

    It ends with this process, so that a kernel that dies or is restarted leaves no run behind. Nothing is started for a
    run that has finished, or that another process trains.

    Raises:
        ConfigError: a task or device that cannot be used.
    """
    config = canonical(config)
    check_usable(config)  # an invalid setting creates no run folder
    run = RunFolder(*find_or_name(config, name))
    if run.done or is_locked(run.path):
        return Background(run.path, None)
    command = Command(command_of(run.path, None), run.path / "log.txt", config.n_threads)
    return Background(run.path, command.start())


class Background:
    """A run that trains beside this process."""

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes] | None"):
        self.folder, self._process = folder, process

    @property
    def ended(self) -> bool:
        """Whether the process that was started for it has ended, in whichever way."""
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """Stop it, if it was started here; its last checkpoint stays."""
        if self._process is not None and not self.ended:
            end(self._process)

    def check(self, interrupted: bool = False) -> None:
        """Raise RunError if it ended without having finished."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process is not None and not interrupted:
                self._process.wait(STOP_SECONDS)  # it writes DONE just before its end
        status = run_status(self.folder)
        if status.state == "failed":
            raise RunError(f"{self.folder}: {status.error} (details in log.txt)")
        if status.state != "finished" and not interrupted:
            code = self._process.returncode if self._process else None
            raise RunError(f"{self.folder}: ended with exit code {code}: {last_line(self.folder)}")

    def __repr__(self) -> str:
        return f"Background({self.folder.name}, {run_status(self.folder).state})"


def _follow(
    runs: Followed,
    baseline: str | Path | None,
    seconds: float,
    timeout: float | None,
    own: "Background | None" = None,
) -> Watched:
    """Look, show what is new, wait; until all runs have ended, `own` has, time is over, or an interrupt stops `own`."""
    view = _View(runs, baseline)
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    reason = ""
    try:
        while not reason:
            # Before the look, which would miss what a run writes between it and its end.
            ended, late = own is not None and own.ended, time.monotonic() >= deadline
            runs.look()
            if all(status.state in ENDED for status in runs.statuses):
                reason = "all have ended"
            elif ended:
                reason = "its process has ended"
            elif late:
                reason = "time is over"
            view.show(reason)
            if not reason:
                time.sleep(min(seconds, max(0.0, deadline - time.monotonic())))
    except KeyboardInterrupt:
        reason = "interrupted"
        if own is not None:
            own.stop()
            runs.look()  # what is left standing must not call it running
        view.show(reason)
    return Watched(runs.statuses, runs.curves(), view.figure, reason, view.n_updates)


class _View:
    """What is shown of some runs."""

    def __init__(self, runs: Followed, baseline: str | Path | None):
        self.runs, self.screen, self.n_updates = runs, make_screen(), 0
        self.figure, self._state = Figure(), object()
        self._baseline = _baseline(baseline, runs)

    def show(self, reason: str) -> None:
        """Show it, if there is something new; a `reason` to end is."""
        if self.runs.state() == self._state and not reason:
            return
        self._state, self.n_updates = self.runs.state(), self.n_updates + 1
        headline = self.runs.counts() + (f" · {reason}" if reason else "")
        with paper_style():
            if self.screen.figures or reason:
                label = metric_label(self.runs.metric)
                self.figure = live_figure(self.runs.curves(), self._baseline, self.runs.t_max(), label)
            self.screen.show(self.figure if self.screen.figures else None, headline, self.runs.lines())


def _baseline(group: str | Path | None, runs: Followed) -> pd.DataFrame:
    """Mean curves of the group's finished runs of the same tasks; empty for none."""
    if group is None:
        return pd.DataFrame(columns=["task", "variant", "t_env", "mean"])
    metrics = load_metrics(find_runs(group, task=runs.tasks()))
    return stats.curves(metrics, runs.metric)
