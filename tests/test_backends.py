"""Backends: processes of this machine, submitit and Ray run the same command, and stop when they are told to."""

import importlib.util
import shutil
import subprocess
import sys
import time

import psutil
import pytest

from k24lab.errors import ConfigError
from k24lab.lab import backends
from k24lab.lab.backends import Local, Ray, Resources, Slurm, build_backend, default_jobs

PRINT = "import os, sys; print(os.environ['OMP_NUM_THREADS'], os.environ['K24LAB_HOME']); sys.exit(int(sys.argv[1]))"
SLEEP = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(300)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


def python(code, *args):
    return [sys.executable, "-c", code, *map(str, args)]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def sleepers(path):
    """Processes that sleep for this test."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(path) in (p.info["cmdline"] or [])]


def slurm_answers():
    return shutil.which("sinfo") is not None and subprocess.run(["sinfo"], capture_output=True).returncode == 0


def build(name, tmp_path):
    if name == "local":
        return Local(2, 3)
    if name == "ray":
        pytest.importorskip("ray", reason="the extra ray is not installed")
        return Ray(Resources(jobs=2, n_threads=3))
    pytest.importorskip("submitit")
    if name == "slurm" and not slurm_answers():
        pytest.skip("no SLURM on this machine")
    options = {"slurm_additional_parameters": {"overcommit": True}} if name == "slurm" else {}
    cluster = "slurm" if name == "slurm" else "local"  # submitit's own stand-in, with processes
    return Slurm(Resources(2, 1 if name == "slurm" else 3, memory_gb=0.5, options=options), tmp_path / "slurm", cluster)


NAMES = ["local", "submitit", "slurm", "ray"]
# Submitit and Ray leave the end of their own processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("name", NAMES)
def test_every_backend_runs_the_command_with_its_threads_and_gives_its_exit_code(name, tmp_path, home):
    backend = build(name, tmp_path)
    logs = [tmp_path / f"{code}.txt" for code in (0, 3, 130)]
    jobs = backend.submit([python(PRINT, log.stem) for log in logs], logs)
    wait_for(lambda: all(job.done() for job in jobs))
    assert [job.result() for job in jobs] == [0, 3, 130]
    threads = 1 if name == "slurm" else 3
    assert [log.read_text() for log in logs] == [f"{threads} {home}\n"] * 3
    backend.stop()


@pytest.mark.parametrize("name", NAMES)
def test_stopping_leaves_no_process_and_starts_none_that_was_queued(name, tmp_path):
    backend = build(name, tmp_path)
    marks = [tmp_path / f"started-{k}" for k in range(4)]
    backend.submit([python(SLEEP, mark) for mark in marks], [mark.with_suffix(".txt") for mark in marks])
    started = marks if name == "submitit" else marks[:2]  # the stand-in knows no limit of jobs
    wait_for(lambda: sum(mark.exists() for mark in marks) == len(started))
    backend.stop()
    wait_for(lambda: not any(map(sleepers, marks)), 30)
    assert sum(mark.exists() for mark in marks) == len(started)


def test_process_that_does_not_end_when_asked_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "STOP_SECONDS", 0.5)
    backend = Local(1, 1)
    (job,) = backend.submit([python(DEAF, tmp_path / "started")], [tmp_path / "log.txt"])
    wait_for((tmp_path / "started").exists)
    backend.stop()
    assert job.result() == -9 and not sleepers(tmp_path / "started")


def test_log_is_appended_to(tmp_path):
    (tmp_path / "log.txt").write_text("before\n")
    (job,) = Local(1, 1).submit([python("print('after')")], [tmp_path / "log.txt"])
    assert job.result() == 0 and (tmp_path / "log.txt").read_text() == "before\nafter\n"


def test_as_many_runs_as_there_are_cores_and_memory_for(monkeypatch):
    monkeypatch.setattr(backends.os, "sched_getaffinity", lambda _: set(range(8)))
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 24 * 2**30 // 4096}
    monkeypatch.setattr(backends.os, "sysconf", pages.get)
    assert [default_jobs(n, 2.0) for n in (1, 3, 16)] == [8, 2, 1]
    assert [default_jobs(1, gb) for gb in (4.0, 12.0, 100.0)] == [6, 2, 1]


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_backend_without_its_package_names_the_extra(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ConfigError, match=rf"backend '{name}' needs the package {package}: pip install 'k24lab\[{name}"
    ):
        build_backend(name, Resources(), "group")


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="the extra slurm is not installed")
def test_slurm_that_is_not_there_or_an_unknown_parameter_is_an_error(tmp_path):
    if not slurm_answers():
        with pytest.raises(ConfigError, match="SLURM cannot be used: "):
            build_backend("slurm", Resources(), "group").submit([["true"]], [tmp_path / "log.txt"])
    with pytest.raises(ConfigError, match=r"SLURM cannot be used: .*partitoin"):
        Slurm(Resources(options={"partitoin": "cpu"}), tmp_path, "local")
