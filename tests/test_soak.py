"""Long training and long sweeps leak nothing: `make test-soak`; here for seconds, and against leaks made on purpose.

Two runs train side by side for an hour (K24LAB_SOAK_SECONDS), one with environments in processes; then a sweep trains
200 tiny runs (K24LAB_SOAK_RUNS). `build/soak/*.csv` has what was measured, also while it goes on.
"""

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import yaml
from conftest import TINY
from processes import gone
from watching import MEMORY, MOST_GROWTH_MB, Program, Sample, fewest, fit, leaks, report, running

from k24lab.envs.registry import make_env
from k24lab.lab.config import build_config
from k24lab.lab.paths import CHECKOUT
from k24lab.lab.runs import CHECKPOINT
from k24lab.lab.status import last_t_env

SECONDS = float(os.environ.get("K24LAB_SOAK_SECONDS", "3600"))
N_RUNS = int(os.environ.get("K24LAB_SOAK_RUNS", "200"))
SERIES = CHECKOUT / "build" / "soak"
ENDLESS = {"t_max": 10**9, "reset_trigger": "periodic"}
SPREAD, ROLENAV = {"task": "mpe2/simple_spread", "n_workers": 2}, {"task": "rolenav"}
SHORT = TINY | {"snapshot_interval": 4_000}
LEAK = """
import subprocess, sys, threading, time
from k24lab.cli import main

def leak():
    kept = []
    while True:
        kept.append((b"1" * 2_000_000, open(__import__("os").devnull), subprocess.Popen(["sleep", "100"])))
        threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
        time.sleep(0.5)

threading.Thread(target=leak, daemon=True).start()
main()
"""


def t_env(home: Path) -> int:
    return max((last_t_env(path) for path in home.glob("runs/*/*/metrics.jsonl")), default=0)


class Run(NamedTuple):
    """A run by its settings, and the program that trains it."""

    settings: Mapping[str, object]
    program: tuple[str, ...] = ("-m", "k24lab")

    def command(self) -> list[str]:
        pairs = (self.settings | ENDLESS).items()
        return [*self.program, "train", *(text for k, v in pairs for text in (f"--{k.replace('_', '-')}", str(v)))]

    def warm(self) -> int:
        """Env steps until the replay buffer is surely full and has been in two checkpoints."""
        config = build_config(self.settings)
        with contextlib.closing(make_env(config.task, 1)) as env:
            return config.buffer_size * env.spec.episode_limit + 2 * config.checkpoint_interval


def train_and_watch(runs: Mapping[str, Run], seconds: float, home: Path, series: Path) -> dict[str, list[Sample]]:
    """Train runs side by side, watch each for `seconds` once it is warm, then stop it; it must leave nothing behind."""
    every = min(max(seconds / 300, 0.1), 5.0)
    with contextlib.ExitStack() as stack:
        started, warm = time.monotonic(), {name: run.warm() for name, run in runs.items()}
        watched = {
            name: stack.enter_context(running(run.command(), home / name, series / f"{name}.csv"))
            for name, run in runs.items()
        }
        first: dict[str, float] = {}  # when it was warm
        while len(first) < len(runs) or time.monotonic() < max(first.values()) + seconds:
            time.sleep(every)
            for name, (program, _) in watched.items():
                assert program.process.poll() is None, (home / name / "log.txt").read_text()[-2000:]
                now, steps = time.monotonic(), t_env(home / name)
                program.sample(now - started, steps)
                if steps >= warm[name]:
                    first.setdefault(name, now)
            assert first or time.monotonic() < started + seconds + 300, "no run gets warm"
        for name, (program, temporary) in watched.items():
            assert_stops_clean(program, home / name, temporary)
    return {
        name: [s for s in program.samples if s.seconds >= first[name] - started]
        for name, (program, _) in watched.items()
    }


def assert_stops_clean(program: Program, home: Path, temporary: Path) -> None:
    ours = [p.pid for p in program.ps.children(recursive=True) if p.name() != "sleep"]  # of a leak on purpose
    program.process.send_signal(signal.SIGTERM)
    assert program.process.wait(60) == 130 and gone(ours)
    assert temporary_files(temporary) == [] and not [*home.rglob(".*.tmp")]
    assert list(home.glob(f"runs/*/*/{CHECKPOINT}"))


def temporary_files(folder: Path) -> list[str]:
    """What is left of them; the cache of torch's compiler has one name for all processes and times."""
    return [path.name for path in folder.iterdir() if not path.name.startswith("torchinductor_")]


def assert_works_on(samples: list[Sample]) -> None:
    first, middle, last = (samples[k].done for k in (0, len(samples) // 2, -1))
    assert first < middle < last, "it stands still"


def test_training_is_flat_and_a_leak_is_seen(tmp_path):
    runs = {"flat": Run(SHORT | SPREAD), "leaking": Run(SHORT | ROLENAV, ("-c", LEAK))}
    flat, leaking = train_and_watch(runs, 5, tmp_path, tmp_path / "series").values()
    assert_works_on(flat)
    assert leaks(flat) == [], report("flat", flat)
    assert {"rss_mb", "files", "processes", "threads"} <= set(leaks(leaking)), report("leaking", leaking)
    assert (tmp_path / "series" / "flat.csv").read_text().startswith("seconds,done,rss_mb,")


@pytest.mark.soak
def test_an_hour_of_training_is_flat(tmp_path):
    runs = {"spread": Run(SPREAD), "rolenav": Run(ROLENAV)}
    series = train_and_watch(runs, SECONDS, tmp_path, SERIES)
    for name, samples in series.items():
        speed = (samples[-1].done - samples[0].done) / (samples[-1].seconds - samples[0].seconds)
        print(f"\n{report(name, samples)}\n  {speed:.0f} env steps/s", file=sys.stderr)
        assert_works_on(samples)
    assert {name: leaks(samples) for name, samples in series.items()} == {name: [] for name in runs}


# --- the check itself ----------------------------------------------------------------------------------------------


def hour(leak_mb: float = 0.0, files: float = 0.0) -> list[Sample]:
    """An hour of samples: memory jumps by megabytes and leaks some, files are open for a moment."""
    chance = random.Random(1)
    return [
        Sample(5.0 * k, k, 400 + chance.gauss(0, 2) + 3 * (k // 50 % 2) + leak_mb * k / 720, 100, n, 0, 3, 2, 3)
        for k in range(720)
        for n in [10 + chance.choice([0, 0, 1, 2]) + int(files * k / 720)]
    ]


def test_slope_has_an_error_that_covers_the_leak():
    for leak_mb in (0.0, 6.0, 60.0):
        line = fit(hour(leak_mb), "rss_mb")
        assert abs(line.slope - leak_mb) < 3 * line.error and line.error < 1.5
        assert line.growth == pytest.approx(line.slope, rel=0.01)


def test_small_leaks_of_an_hour_are_seen_and_noise_is_none():
    assert leaks(hour()) == []
    assert leaks(hour(leak_mb=MOST_GROWTH_MB)) == ["rss_mb"]
    assert leaks(hour(files=2)) == ["files"] and fewest(hour(files=2), "files") == (10, 11)


# --- sweeps ----------------------------------------------------------------------------------------------------------

KEPT = {"config.json", "metrics.jsonl", "summary.json", "provenance.jsonl", "policy.npz", "log.txt", "DONE", ".lock"}


def leftovers(runs: Path) -> list[str]:
    """Files of finished runs that should not be there, and those that are missing (`-name`)."""
    problems = []
    for folder in runs.iterdir():
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        names -= {name for name in names if name.startswith("patterns/0") and name.endswith(".npz")}
        problems += [f"{folder.name}/{name}" for name in names - KEPT - {CHECKPOINT}]
        problems += [f"{folder.name}/-{name}" for name in (KEPT | {CHECKPOINT}) - names]
    return sorted(problems)


def test_leftovers_are_seen(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in KEPT | {CHECKPOINT}:
        (folder / name).touch()
    assert leftovers(tmp_path) == []
    (folder / ".summary.json.7.tmp").touch()
    (folder / "summary.json").unlink()
    assert leftovers(tmp_path) == ["run/-summary.json", "run/.summary.json.7.tmp"]


@pytest.mark.soak
def test_a_sweep_of_200_runs_is_flat_and_leaves_nothing_behind(tmp_path):
    grid = tmp_path / "grid.yaml"
    methods = ["k24", "fups"]
    entry = {"method": methods, "seed": list(range(N_RUNS // len(methods)))}
    grid.write_text(yaml.safe_dump({"name": "many", "common": TINY, "grids": [entry]}))
    with running(["-m", "k24lab", "sweep", str(grid)], tmp_path, SERIES / "sweep.csv") as (program, temporary):
        started = time.monotonic()
        while program.process.poll() is None:
            program.sample(time.monotonic() - started, len(list(tmp_path.glob("runs/many/*/DONE"))))
            time.sleep(0.5)
        took = time.monotonic() - started
        assert program.process.returncode == 0, (tmp_path / "log.txt").read_text()[-2000:]
        assert temporary_files(temporary) == []
    assert len(list(tmp_path.glob("runs/many/*/DONE"))) == N_RUNS and leftovers(tmp_path / "runs" / "many") == []
    assert not [p.pid for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
    samples = [s for s in program.samples if N_RUNS // 20 <= s.done < N_RUNS]  # without its start and its end
    print(
        f"\n{report('sweep', samples)}\n  {N_RUNS} runs in {took:.0f} s, {took / N_RUNS:.2f} s a run", file=sys.stderr
    )
    assert leaks(samples, MEMORY[:1], ["files", "threads"]) == []
