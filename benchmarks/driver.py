"""Runs the sides of a comparison, each in a process of its own, and asks one after the other for pieces of work."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerError(Exception):
    """A side that could not work."""


@dataclass(frozen=True)
class Side:
    """What works: a function of this package with a `Meter` and settings, in the Python of a peer (or in this one)."""

    target: str  # module:function
    settings: Mapping[str, Any] = field(default_factory=dict)
    peer: str | None = None


class Worker:
    """A side's process, which waits while others work."""

    def __init__(self, target: str, settings: Mapping[str, Any], python: str, cores: int):
        self.folder = tempfile.TemporaryDirectory()
        self.log = Path(self.folder.name) / "stderr.txt"
        environment = os.environ | dict.fromkeys(THREADS, str(cores)) | {"PYTHONPATH": str(ROOT)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, "-m", "benchmarks.worker", target, str(cores), json.dumps(dict(settings))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder.name,
                env=environment,
            )

    def rate(self, seconds: float) -> float:
        """Units of work a second in a piece of so many seconds. Raises WorkerError if the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(seconds, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            raise WorkerError(lines[-1] if lines else "ended without a message")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            stream.close()
        self.folder.cleanup()


def interleaved_rates(workers: Mapping[str, Worker], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Speeds of all workers in each round; every other round goes in reverse order.

    The two first pieces of each, in which it prepares, compiles and fills its buffers, do not count. A worker that
    fails is left out, with a line that says why.
    """
    rates: dict[str, list[float]] = {}
    for name, worker in workers.items():
        try:
            worker.rate(0), worker.rate(seconds)
            rates[name] = []
        except WorkerError as error:
            print(f"  skipped: {name}: {error}")
    for k in range(rounds):
        names = list(rates)
        for name in names if k % 2 else reversed(names):
            try:
                rates[name].append(workers[name].rate(seconds))
            except WorkerError as error:
                print(f"  left out: {name}: {error}")
                del rates[name]
    return rates


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Median and quartiles over rounds of `ours / theirs`."""
    low, median, high = np.quantile(np.divide(ours, theirs), [0.25, 0.5, 0.75]).tolist()
    return {"ratio": median, "low": low, "high": high}
