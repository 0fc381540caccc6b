"""Watching runs while they train, whoever trains them, and training one beside the kernel of a notebook."""

import base64
import contextlib
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from k24lab.analysis import stats
from k24lab.analysis.load import load_metrics
from k24lab.analysis.style import paper_style, screen_png
from k24lab.errors import RunError
from k24lab.lab.backends import STOP_SECONDS, Command, command_of, end
from k24lab.lab.checks import check_usable
from k24lab.lab.config import Config
from k24lab.lab.find_runs import find_runs
from k24lab.lab.runs import RunFolder, canonical, is_locked, run_folder
from k24lab.lab.status import RunStatus, run_status
from k24lab.lab.sweep import last_line
from k24lab.rendering.run_progress import ENDED, RunProgress, progress_figure

TEST_RETURN = "test_return_mean"
SECONDS = 3.0  # between two looks at the folders


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
    return _follow(RunProgress(source, metric), baseline, seconds, timeout)


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
        watched = _follow(RunProgress(run.folder, metric), baseline, seconds, None, run)
        if watched.ended != "interrupted":
            run.check_finished()
    finally:
        run.stop()
    return watched


def start(config: Config, name: str = "default") -> "BackgroundRun":
    """Start a run, or go on with it, in a process beside this one, and return at once: `watch(run.folder)` looks at it.

    It ends with this process, so that a kernel that dies or is restarted leaves no run behind. Nothing is started for a
    run that has finished, or that another process trains.

    Raises:
        ConfigError: a task or device that cannot be used.
    """
    config = canonical(config)
    check_usable(config)  # an invalid setting creates no run folder
    run = RunFolder(run_folder(config, name), config)
    if run.done or is_locked(run.path):
        return BackgroundRun(run.path, None)
    command = Command(command_of(run.path, None), run.path / "log.txt", config.n_threads)
    return BackgroundRun(run.path, command.start())


class BackgroundRun:
    """A run that trains beside this process; `process` is None where nothing was started for it."""

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes] | None"):
        self.folder, self.process = folder, process

    @property
    def ended(self) -> bool:
        """Whether the process that was started for it has ended, in whichever way."""
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> None:
        """Stop it, if it was started here; its last checkpoint stays."""
        if self.process is not None and not self.ended:
            end(self.process)

    def check_finished(self) -> None:
        """Raise RunError if it ended without having finished."""
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)  # it writes DONE just before its end
        status = run_status(self.folder)
        if status.state == "failed":
            raise RunError(f"{self.folder}: {status.error} (details in log.txt)")
        if status.state != "finished":
            code = self.process.returncode if self.process else None
            raise RunError(f"{self.folder}: ended with exit code {code}: {last_line(self.folder)}")

    def __repr__(self) -> str:
        return f"BackgroundRun({self.folder.name}, {run_status(self.folder).state})"


def _follow(
    runs: RunProgress,
    baseline: str | Path | None,
    seconds: float,
    timeout: float | None,
    own: BackgroundRun | None = None,
) -> Watched:
    """Look, show what is new, wait; until all runs have ended, `own` has, time is over, or an interrupt stops `own`."""
    means = pd.DataFrame(columns=["task", "variant", "t_env", "mean"])
    if baseline is not None:
        means = stats.curves(load_metrics(find_runs(baseline, task=list(runs.tasks()))), runs.metric)
    view = _View(runs, means)
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    reason = ""
    try:
        while not reason:
            # Before the update, which would miss what a run writes between it and its end.
            exited, late = own is not None and own.ended, time.monotonic() >= deadline
            changed = runs.update()
            if all(status.state in ENDED for status in runs.statuses):
                reason = "all have ended"
            else:
                reason = "its process has ended" if exited else "time is over" if late else ""
            if changed or reason or not view.n_updates:
                view.show(reason)
            if not reason:
                time.sleep(min(seconds, max(0.0, deadline - time.monotonic())))
    except KeyboardInterrupt:
        reason = "interrupted"
        if own is not None:
            own.stop()
            runs.update()  # what is left standing must not call it running
        view.show(reason)
    return Watched(runs.statuses, runs.curves(), view.figure, reason, view.n_updates)


class _View:
    """A figure and a text that are updated in place in a notebook's outputs; in any other Python, lines of text."""

    def __init__(self, runs: RunProgress, baseline: pd.DataFrame):
        self._runs, self._baseline = runs, baseline
        self.figure, self.n_updates = Figure(), 0
        self._ids = uuid.uuid4().hex, uuid.uuid4().hex

    def show(self, reason: str) -> None:
        """Show how far the runs are, and the reason to end if there is one."""
        from IPython import get_ipython
        from IPython.display import display

        headline, lines = self._runs.headline() + (f" · {reason}" if reason else ""), self._runs.lines()
        in_notebook = hasattr(get_ipython(), "kernel")
        with paper_style():
            if in_notebook or reason:
                self.figure = progress_figure(self._runs, self._baseline)
            picture = base64.b64encode(screen_png(self.figure)).decode() if in_notebook else ""
        if in_notebook:
            outputs = {"text/plain": headline, "image/png": picture}, {"text/plain": "\n".join([headline, *lines])}
            for id_, output in zip(self._ids, outputs, strict=True):
                display(output, raw=True, display_id=id_, update=self.n_updates > 0)
        else:
            print(time.strftime("%H:%M:%S"), headline, *[f"| {' '.join(line.split())}" for line in lines], flush=True)
        self.n_updates += 1
