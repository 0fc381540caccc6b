"""Watching runs while they train, whoever trains them, and training one beside the kernel of a notebook."""

import contextlib
import dataclasses
import subprocess
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from k24lab.analysis.curve_plots import panels, shared_legend, time_axis
from k24lab.analysis.load import RETURN, metric_rows
from k24lab.analysis.style import METRIC_LABEL, metric_label, paper_style, screen_png, variant_styles
from k24lab.errors import RunError, unknown
from k24lab.lab.backends import STOP_SECONDS, Command, command_of, end
from k24lab.lab.checks import check_usable
from k24lab.lab.config import Config
from k24lab.lab.find_runs import Run, no_runs, variants
from k24lab.lab.paths import runs_dir
from k24lab.lab.runs import RunFolder, canonical, find_folder, is_locked, run_folder
from k24lab.lab.status import RunStatus, run_status
from k24lab.lab.sweep import last_line

SECONDS = 3.0  # between two looks at the folders
LEARNING = "loss_td"  # logged with everything else that a run logs but its tests
MOST_LINES = 12  # of single runs; of more runs only those that are running or failed have one


@dataclasses.dataclass(frozen=True)
class Watched:
    """What was seen last."""

    statuses: list[RunStatus]
    curves: pd.DataFrame  # columns task, variant, run, t_env, value
    figure: Figure
    ended: str  # why watching ended
    n_updates: int  # times that something new was shown


def watch(
    source: str | Path = "default", metric: str = RETURN, *, seconds: float = SECONDS, timeout: float | None = None
) -> Watched:
    """Show curves and progress of runs while they grow, until each has finished or failed.

    The runs may be trained by whatever process, `k24lab sweep` in a terminal say. In a notebook the figure is updated
    in place; elsewhere each change is printed. Interrupting it ends the watching alone.

    `source` is a group of runs (by name, or its folder) or one run (its folder, or its id), `metric` any logged
    quantity. There are `seconds` between two looks; after `timeout` seconds it ends in any case, 0 shows what there is.
    """
    return _follow(source, metric, seconds, timeout)


def train_live(config: Config, name: str = "default", metric: str = RETURN, *, seconds: float = SECONDS) -> Watched:
    """Train a run, or go on with it, in a process beside this one, and watch it: curves while it learns.

    Interrupting it stops the run as well; the same call goes on from its last checkpoint. A finished run is only shown.

    `name` is its group of runs, a folder under `runs/`; `metric` and `seconds` are as for `watch`. That the run failed,
    or was killed, is a RunError.
    """
    config = canonical(config)
    check_usable(config)  # an invalid setting creates no run folder
    run = RunFolder(run_folder(config, name), config)
    if run.done or is_locked(run.path):  # another process trains it
        return watch(run.path, metric, seconds=seconds)
    # It ends with this process, so that a kernel that dies or is restarted leaves no run behind.
    process = Command(command_of(run.path, None), run.path / "log.txt", config.n_threads).start()
    try:
        watched = _follow(run.path, metric, seconds, None, process)
        if watched.ended != "interrupted":
            _check_finished(run.path, process)
    finally:
        if process.poll() is None:
            end(process)
    return watched


def _check_finished(folder: Path, process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)  # it writes DONE just before its end
    status = run_status(folder)
    if status.state == "failed":
        raise RunError(f"{folder}: {status.error} (details in log.txt)")
    if status.state != "finished":
        raise RunError(f"{folder}: ended with exit code {process.returncode}: {last_line(folder)}")


def _follow(
    source: str | Path, metric: str, seconds: float, timeout: float | None, own: "subprocess.Popen[bytes] | None" = None
) -> Watched:
    """Look, show what is new, wait; until all runs have ended, `own` has, time is over, or an interrupt stops `own`."""
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    shown, reason, n_updates = None, "", 0
    while not reason:
        try:
            # Before the look, which would miss what a run writes between it and its end.
            exited, late = own is not None and own.poll() is not None, time.monotonic() >= deadline
            seen = _look(source, metric)
            if all(status.state in ("finished", "failed") for status in seen[0]):
                reason = "all have ended"
            else:
                reason = "its process has ended" if exited else "time is over" if late else ""
            if reason or seen != shown:
                figure = _show(*seen, metric, reason)
                shown, n_updates = seen, n_updates + 1
            if not reason:
                time.sleep(min(seconds, max(0.0, deadline - time.monotonic())))
        except KeyboardInterrupt:
            reason = "interrupted"
            if own is not None:
                end(own)
            seen = _look(source, metric)  # what is left standing must not call the run running
            figure = _show(*seen, metric, reason)
    return Watched(seen[0], _table(seen[1]), figure, reason, n_updates)


Point = tuple[str, str, str, int, float]  # task, variant, run, t_env, value


def _look(source: str | Path, metric: str) -> tuple[list[RunStatus], list[Point], list[str]]:
    """The runs, the metric so far, and why some runs are left out; no runs, or none with the metric, is an error."""
    statuses, left_out = [], []
    for folder in _folders(source):
        try:
            statuses.append(run_status(folder))
        except RunError as error:  # of another version, say
            left_out.append(f"left out: {error}")
    if not statuses:
        raise RunError("; ".join(left_out))
    points: list[Point] = []
    logged = set[str]()
    for status, variant in zip(statuses, _variants(statuses), strict=True):
        path = status.path / "metrics.jsonl"
        rows = metric_rows(path) if path.is_file() else []
        points += [
            (status.config.task, variant, status.path.name, r["t_env"], float(r[metric])) for r in rows if metric in r
        ]
        logged.update(*rows)
    # Before its first update a run has logged tests alone.
    complete = LEARNING in logged and metric not in METRIC_LABEL
    ended = all(status.state in ("finished", "failed") for status in statuses)
    if logged and metric not in logged and (complete or ended):
        raise RunError(unknown("metric", metric, logged))
    return statuses, points, left_out


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


def _variants(statuses: list[RunStatus]) -> list[str]:
    return variants([Run(status.path, dataclasses.asdict(status.config), False) for status in statuses])


def _table(points: list[Point]) -> pd.DataFrame:
    return pd.DataFrame(points, columns=["task", "variant", "run", "t_env", "value"])


def _show(statuses: list[RunStatus], points: list[Point], left_out: list[str], metric: str, reason: str) -> Figure:
    """Show how far the runs are, and the reason to end if there is one."""
    from IPython import get_ipython
    from IPython.display import Image, clear_output, display

    states = [status.state for status in statuses]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    headline = f"{time.strftime('%H:%M:%S')} {counts} of {len(states)} runs" + (f" · {reason}" if reason else "")
    with paper_style():
        figure = _figure(statuses, _table(points), metric)
        if hasattr(get_ipython(), "kernel"):
            clear_output(wait=True)
            display(Image(screen_png(figure)))
    print("\n".join([headline, *_lines(statuses, points), *left_out]), flush=True)
    return figure


def _lines(statuses: list[RunStatus], points: list[Point]) -> list[str]:
    """How far each run is, and the last value of the metric; of many runs only those that are running or failed."""
    last = {point[2]: f"{point[4]:#.3g}" for point in points}
    rows = [
        (
            s.config.task,
            variant,
            f"seed {s.config.seed}",
            s.state,
            f"{s.t_env / s.config.t_max:.0%}",
            last.get(s.path.name, ""),
            s.error,
        )
        for s, variant in zip(statuses, _variants(statuses), strict=True)
        if len(statuses) <= MOST_LINES or s.state in ("running", "failed")
    ]
    return pd.DataFrame(rows[:MOST_LINES]).to_string(index=False, header=False).splitlines() if rows else []


def _figure(statuses: list[RunStatus], curves: pd.DataFrame, metric: str) -> Figure:
    """A panel per task with a line per run and a dot at its end."""
    longest = pd.Series([s.config.t_max for s in statuses]).groupby([s.config.task for s in statuses], sort=False).max()
    fig, axes = panels(len(longest), height=2.3)
    plt.close(fig)
    for ax, (task, t_max) in zip(axes, longest.items(), strict=True):
        own = curves[curves["task"] == task]
        for variant, style in variant_styles(own["variant"]).items():  # seeds look alike
            for k, (_, rows) in enumerate(own[own["variant"] == variant].groupby("run", sort=False)):
                x, y, label = rows["t_env"], rows["value"], "" if k else style.label
                ax.plot(x, y, color=style.color, linestyle=style.linestyle, linewidth=1.2, label=label)
                ax.plot(x.iloc[-1], y.iloc[-1], color=style.color, marker="o", markersize=3)
        ax.set(xlim=(0, t_max), title=task)
        time_axis(ax, metric_label(metric))
    return shared_legend(fig)
