"""Grids of runs: one process each; finished runs are skipped, failed ones listed, stopped ones go on."""

import time
from collections.abc import Mapping
from concurrent.futures import CancelledError
from pathlib import Path

from tqdm import tqdm

from k24lab.errors import RunError
from k24lab.lab.backends import INTERRUPTED, Backend, Job, command_of
from k24lab.lab.grid import Grid
from k24lab.lab.runs import RunFolder, run_folder
from k24lab.lab.status import RunStatus, last_t_env, run_status

POLL_SECONDS = 1.0


def sweep(grid: Grid, backend: Backend, retry: bool = False, poll_seconds: float = POLL_SECONDS) -> list[Path]:
    """Train all runs that are not finished; those that were stopped go on. Runs that failed wait for `retry`.

    A run that another process trains is left to it, unless that ends within seconds, as after a killed sweep.

    Raises:
        RunError: runs that are not finished afterwards, each with its reason; the others are.
    """
    folders = [RunFolder(run_folder(config, grid.name), config).path for config in grid.configs]
    before = {path: run_status(path, grid.notebook) for path in folders}
    leave = {"finished"} if retry else {"finished", "failed"}
    todo = [path for path, status in before.items() if status.state not in leave]
    try:
        jobs = backend.submit([command_of(path, grid.notebook) for path in todo], [path / "log.txt" for path in todo])
        codes = _watch(grid.name, before, dict(zip(todo, jobs, strict=True)), poll_seconds)
    except BaseException:  # Ctrl-C, SIGTERM, or whatever went wrong: no run is left behind
        backend.stop()
        raise
    after = [run_status(path, grid.notebook) for path in folders]
    unfinished = [status for status in after if status.state != "finished" or codes.get(status.path, 0) != 0]
    problems = [f"  {status.path}: {_problem(status, codes.get(status.path))}" for status in unfinished]
    if problems:
        raise RunError(f"{len(problems)} of {len(folders)} runs are not finished:\n" + "\n".join(problems))
    return folders


def _watch(
    name: str, before: Mapping[Path, RunStatus], jobs: Mapping[Path, Job], poll_seconds: float
) -> dict[Path, int | str | None]:
    """Wait for the jobs with a progress bar of the grid; returns each job's `_result`."""
    codes: dict[Path, int | str | None] = {}
    steps = {path: status.t_env for path, status in before.items()}
    with tqdm(
        total=sum(status.config.t_max for status in before.values()),
        initial=sum(steps.values()),
        unit="step",
        unit_scale=True,
        desc=name,
        mininterval=poll_seconds,
    ) as bar:
        while True:
            for path, job in jobs.items():
                if path not in codes and job.done():
                    codes[path] = _result(job)
            for path in jobs:  # a run that goes on steps back first
                steps[path] = max(steps[path], min(last_t_env(path / "metrics.jsonl"), before[path].config.t_max))
            bar.set_postfix_str(f"{sum((path / 'DONE').exists() for path in before)}/{len(before)} runs", refresh=False)
            bar.update(sum(steps.values()) - bar.n)
            if len(codes) == len(jobs):
                return codes
            time.sleep(poll_seconds)


def _result(job: Job) -> int | str | None:
    """A job's exit code, None if it was cancelled, or what the backend says of a job that it lost or never started."""
    try:
        return job.result()
    except CancelledError:
        return None
    except Exception as error:  # whatever a backend raises
        return f"{type(error).__name__}: {error}"


def _problem(status: RunStatus, code: int | str | None) -> str:
    """Why a run is not finished."""
    if status.state == "failed":
        return f"{status.error} (details in log.txt; --retry tries it again)"
    if isinstance(code, str):
        return f"could not be computed ({code}); the same sweep goes on with it"
    if status.state == "finished":
        return f"is trained, but ended with exit code {code}: {last_line(status.path)}"
    if status.state == "running":
        return "another process trains it"
    if code is None or code == INTERRUPTED or code < 0:
        how = f"killed by signal {-code} (9: often for memory)" if code and code < 0 else "stopped"
        return f"was {how}; the same sweep goes on with it"
    return f"ended with exit code {code}: {last_line(status.path)}"


def last_line(path: Path) -> str:
    """What a run said last."""
    log = path / "log.txt"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else "no output"
