"""A program watched from outside: memory, open files, processes and threads over time, and whether they stay flat."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from scipy.stats import linregress

MOST_GROWTH_MB = 8.0  # of a fitted line over the whole time that is watched: 8 MB/h in an hour
N_BLOCKS = 20  # whose means the line is fitted to: neighbouring samples are no independent measurements
MEMORY, COUNTS = ("rss_mb", "children_mb"), ("files", "children_files", "processes", "threads", "children_threads")


class Sample(NamedTuple):
    """A program at one moment; `children` are all its descendants together."""

    seconds: float
    done: int  # env steps or runs: how far its work is
    rss_mb: float  # resident memory, of 10^6 bytes
    children_mb: float
    files: int  # open descriptors
    children_files: int
    processes: int  # descendants
    threads: int
    children_threads: int


class Line(NamedTuple):
    """A straight line through a series, per hour."""

    slope: float
    error: float  # standard error of the slope
    growth: float  # over the whole series
    growth_error: float


class Program:
    """A program in a process group of its own; its samples go to a file line by line, so that one can look on."""

    def __init__(self, process: "subprocess.Popen[bytes]", series: Path):
        self.process, self.ps, self.samples = process, psutil.Process(process.pid), list[Sample]()
        series.parent.mkdir(parents=True, exist_ok=True)
        self._file = series.open("w", newline="")
        csv.writer(self._file).writerow(Sample._fields)

    def sample(self, seconds: float, done: int) -> None:
        """Look at it once; children that end meanwhile count for nothing."""
        children = [look for child in self.ps.children(recursive=True) if (look := _look(child))]
        own = _look(self.ps)
        if own is None:  # it has ended
            return
        memory, files, threads = (sum(column) for column in zip((0.0, 0, 0), *children, strict=True))
        row = Sample(seconds, done, own[0], memory, own[1], files, len(children), own[2], threads)
        self.samples.append(row)
        csv.writer(self._file).writerow([f"{x:.2f}" if isinstance(x, float) else x for x in row])
        self._file.flush()

    def close(self) -> None:
        """Kill what is left of its group."""
        self._file.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _look(process: psutil.Process) -> tuple[float, int, int] | None:
    """Resident memory, open descriptors and threads; None if the process has just ended."""
    try:
        with process.oneshot():
            return process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()
    except psutil.Error:
        return None


@contextlib.contextmanager
def running(python: Sequence[str], home: Path, series: Path) -> Iterator[tuple[Program, Path]]:
    """`python ...` with a home of its own; what it says goes to `log.txt` there, its temporary files to a folder.

    That is yielded too. It is not in the home: addresses of sockets have at most 108 characters.
    """
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary, (home / "log.txt").open("wb") as log:
        environment = os.environ | {"K24LAB_HOME": str(home), "TMPDIR": temporary, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, *python], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        program = Program(process, series)
        try:
            yield program, Path(temporary)
        finally:
            program.close()


def fit(samples: Sequence[Sample], column: str) -> Line:
    """Least squares through the means of blocks of a column of the samples."""
    times, values = (np.array([getattr(s, name) for s in samples], float) for name in ("seconds", column))
    n_blocks = min(N_BLOCKS, len(samples))
    assert n_blocks > 4, f"{len(samples)} samples are too few"
    x, y = ([block.mean() for block in np.array_split(a, n_blocks)] for a in (times / 3600, values))
    line, hours = linregress(x, y), (times[-1] - times[0]) / 3600
    error = line.stderr if np.ptp(values) else 0.0  # that of a constant can be 0/0
    return Line(line.slope, error, line.slope * hours, error * hours)


def fewest(samples: Sequence[Sample], column: str) -> tuple[int, int]:
    """The fewest of a count in the first and in the last quarter: files that are open for a moment are no leak."""
    values = [getattr(s, column) for s in samples]
    quarter = max(len(values) // 4, 1)
    return min(values[:quarter]), min(values[-quarter:])


def leaks(samples: Sequence[Sample], memory: Sequence[str] = MEMORY, counts: Sequence[str] = COUNTS) -> list[str]:
    """The columns that grow: memory that is not shown to be flat (growth and two standard errors), counts at all."""
    lines = {column: fit(samples, column) for column in memory}
    grown = [column for column, line in lines.items() if line.growth + 2 * line.growth_error > MOST_GROWTH_MB]
    return grown + [column for column in counts if fewest(samples, column)[0] != fewest(samples, column)[1]]


def report(name: str, samples: Sequence[Sample]) -> str:
    """One line for each column: slope of memory, also of the second half (a heap settles in the first), and ranges."""
    lines = [f"{name}: {len(samples)} samples in {samples[-1].seconds - samples[0].seconds:.0f} s"]
    for column in MEMORY + COUNTS:
        values = [getattr(s, column) for s in samples]
        text = f"{min(values):g} to {max(values):g}"
        if column in MEMORY:
            whole, second = fit(samples, column), fit(samples[len(samples) // 2 :], column)
            text += f" MB, {whole.slope:+.2f} ± {whole.error:.2f} MB/h"
            text += f", in the second half {second.slope:+.2f} ± {second.error:.2f}"
        lines.append(f"  {column}: {text}")
    return "\n".join(lines)
