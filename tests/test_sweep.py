"""Sweeps: what is run, what is left alone, and what is said of runs that are not finished."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError, Future
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from conftest import TINY

from k24lab.errors import ConfigError, RunError
from k24lab.lab.backends import Local
from k24lab.lab.config import build_config
from k24lab.lab.grid import Grid
from k24lab.lab.notebooks import execute_run
from k24lab.lab.runs import CHECKPOINT, FAILED, RunFolder, read_config, run_folder
from k24lab.lab.status import run_status
from k24lab.lab.sweep import sweep
from k24lab.lab.train import train

SHORT = {"t_max": 400, "method": "fups"}


class Here:
    """A backend that trains in this process; `codes` are those of runs that it only pretends to run."""

    def __init__(self, codes=()):
        self.codes, self.commands, self.stopped = dict(codes), [], False

    def submit(self, commands, logs):
        self.commands += commands
        return [self._job(Path(command[4])) for command in commands]

    def _job(self, path):
        job = Future()
        code = self.codes.get(read_config(path).seed)
        if isinstance(code, Exception):
            job.set_exception(code)
            return job
        if code is None:
            try:
                train(read_config(path), folder=path, progress=False)
            except RunError:
                code = 2
        job.set_result(code or 0)
        return job

    def stop(self):
        self.stopped = True


@pytest.fixture(autouse=True)
def short_wait_for_locks(monkeypatch):
    monkeypatch.setattr("k24lab.lab.runs.LOCK_SECONDS", 0.2)


def grid_of(tiny_config, seeds, **changes):
    return Grid("group", [tiny_config(seed=seed, **SHORT | changes) for seed in seeds])


@pytest.mark.parametrize("name", ["../x", "a/b", ""])
def test_bad_name_starts_nothing(name, home, tiny_config):
    backend = Here()
    with pytest.raises(ConfigError, match="name = "):
        sweep(Grid(name, [tiny_config()]), backend)
    assert not (home / "runs").exists() and not backend.commands


def test_finished_runs_are_skipped_and_a_failing_one_does_not_stop_the_others(tiny_config, tmp_path):
    done, good, bad = (grid := grid_of(tiny_config, range(3))).configs
    train(done, "group", progress=False)
    before = {p: p.stat().st_mtime_ns for p in run_folder(done, "group").rglob("*")}
    run_folder(bad, "group").mkdir(parents=True)
    (run_folder(bad, "group") / CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(RunError) as error:
        sweep(grid, Local(1, 1), poll_seconds=0.05)
    message = str(error.value)
    assert "1 of 3 runs are not finished" in message and str(run_folder(bad, "group")) in message
    assert "RunError" in message and "checkpoint.safetensors cannot be read" in message and "--retry" in message
    assert (run_folder(good, "group") / "DONE").exists() and not (run_folder(bad, "group") / "DONE").exists()
    assert {p: p.stat().st_mtime_ns for p in run_folder(done, "group").rglob("*")} == before
    alone = train(good, folder=tmp_path / "alone", progress=False)
    assert (run_folder(good, "group") / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()


def test_failed_run_waits_until_it_is_to_be_retried(tiny_config):
    grid = grid_of(tiny_config, [0])
    folder = run_folder(grid.configs[0], "group")
    folder.mkdir(parents=True)
    (folder / CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(RunError, match="cannot be read"):
        sweep(grid, Here())
    (folder / CHECKPOINT).unlink()
    with pytest.raises(RunError, match="cannot be read"):  # the error that it failed with
        sweep(grid, backend := Here())
    assert not backend.commands and run_status(folder).state == "failed"
    assert sweep(grid, Here(), retry=True) == [folder]
    assert (folder / "DONE").exists() and not (folder / FAILED).exists()


def test_grown_grid_adds_only_what_is_new(tiny_config):
    sweep(grid_of(tiny_config, [0]), Here())
    backend = Here()
    sweep(grid_of(tiny_config, [0, 1]), backend)
    assert [read_config(Path(command[4])).seed for command in backend.commands] == [1]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (130, "was stopped"),
        (-9, "killed by signal 9"),
        (3, "exit code 3: no output"),
        (OSError("lost"), r"could not be computed \(OSError: lost\)"),
        (CancelledError(), "was stopped"),
    ],
)
def test_run_that_ends_otherwise_is_no_failure_of_its_own(code, message, tiny_config):
    grid = grid_of(tiny_config, [0, 1])
    with pytest.raises(RunError, match=message):
        sweep(grid, Here({0: code}))
    assert run_status(run_folder(grid.configs[0], "group")).state == "waiting"
    sweep(grid, Here())


def test_trained_run_whose_process_failed_later_is_reported(tiny_config):
    class Late(Here):
        def _job(self, path):
            super()._job(path)
            job = Future()
            job.set_result(1)
            return job

    grid = grid_of(tiny_config, [0])
    with pytest.raises(RunError, match="is trained, but ended with exit code 1"):
        sweep(grid, Late())
    sweep(grid, Here())


def test_run_in_other_hands_is_left_to_them(tiny_config):
    grid = grid_of(tiny_config, [0, 1])
    with RunFolder(run_folder(grid.configs[0], "group"), grid.configs[0]).attempt():
        with pytest.raises(RunError, match="1 of 2 runs are not finished") as error:
            sweep(grid, Here())
        assert "another process trains it" in str(error.value)
        assert (run_folder(grid.configs[1], "group") / "DONE").exists()
        with pytest.raises(RunError, match="another process trains this run"):
            train(grid.configs[0], "group", progress=False)
    assert not (run_folder(grid.configs[0], "group") / FAILED).exists()  # to be refused is no failure of the run


def test_error_while_watching_stops_every_run(tiny_config, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("k24lab.lab.sweep._watch", fail)
    backend = Here()
    with pytest.raises(KeyboardInterrupt):
        sweep(grid_of(tiny_config, [0]), backend)
    assert backend.stopped


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_a_sweep_leaves_no_process_and_runs_that_go_on(stop, tmp_path, home):
    common = TINY | {"t_max": 10**6, "method": "fups", "checkpoint_interval": 400}
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({"name": "g", "common": common, "grids": [{"seed": [0, 1, 2]}]}))
    folders = [run_folder(build_config(common | {"seed": seed}), "g") for seed in range(3)]
    command = [sys.executable, "-m", "k24lab", "sweep", str(file), "--jobs", "2"]
    with (tmp_path / "err").open("w") as err, subprocess.Popen(command, stderr=err) as process:
        wait_for(lambda: all((folder / CHECKPOINT).exists() for folder in folders[:2]))
        runs = psutil.Process(process.pid).children(recursive=True)
        assert len(runs) == 2
        with pytest.raises(RunError, match="another process trains"):
            train(read_config(folders[0]), folder=folders[0], progress=False)
        process.send_signal(stop)
        assert process.wait(timeout=30) == 130, (tmp_path / "err").read_text()
    assert not psutil.wait_procs(runs, timeout=1)[1]
    assert [run_status(folder).state for folder in folders] == ["stopped", "stopped", "waiting"]


def test_runs_end_when_their_sweep_is_killed_outright(tmp_path, home):
    common = TINY | {"t_max": 10**6, "method": "fups", "checkpoint_interval": 400}
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({"name": "g", "common": common, "grids": [{"seed": 0}]}))
    folder = run_folder(build_config(common), "g")
    with subprocess.Popen([sys.executable, "-m", "k24lab", "sweep", str(file)], stderr=subprocess.DEVNULL) as process:
        wait_for((folder / CHECKPOINT).exists)
        runs = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert runs and not psutil.wait_procs(runs, timeout=30)[1]
    assert run_status(folder).state == "stopped"


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_killed_run_goes_on_and_ends_as_if_it_had_never_been_killed(tiny_config, tmp_path):
    config = tiny_config(**SHORT | {"t_max": 2000})
    folder = RunFolder(run_folder(config, "group"), config).path
    command = [sys.executable, "-m", "k24lab", "resume", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: (folder / CHECKPOINT).exists())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    sweep(Grid("group", [config]), Here())
    alone = train(config, folder=tmp_path / "alone", progress=False)
    assert (folder / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()


def test_grid_with_a_notebook_keeps_the_executed_copy_of_each_run(tiny_config):
    grid = Grid("group", [tiny_config(**SHORT, mixer="none", n_threads=2)], "02_train")
    (folder,) = sweep(grid, Local(1, 1))
    copy = json.loads((folder / "02_train.ipynb").read_text())
    assert (folder / "DONE").exists() and read_config(folder) == grid.configs[0]
    assert "execution_count" in json.dumps(copy) and not (folder / "02_train.part.ipynb").exists()


def test_trained_run_whose_notebook_failed_is_listed_and_goes_through_the_notebook_again(
    tiny_config, home, monkeypatch
):
    cells = [
        nbformat.v4.new_code_cell("name = 'x'\nmethod = 'k24'\noverrides = {}", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "import os\nfrom k24lab.lab.config import build_config\nfrom k24lab.lab.train import train\n"
            "train(build_config(overrides | {'method': method}), name, progress=False)\n"
            "assert not os.environ.get('BREAK_THE_CELL')"
        ),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "x"}})
    notebook.metadata["kernelspec"]["language"] = "python"
    (home / "notebooks").mkdir()
    nbformat.write(notebook, home / "notebooks" / "mine.ipynb")

    class ThroughTheNotebook(Here):
        def _job(self, path):
            job = Future()
            try:
                execute_run(path, "mine")
                job.set_result(0)
            except RunError:
                job.set_result(2)
            return job

    grid = Grid("group", [tiny_config(**SHORT)], "mine")
    monkeypatch.setenv("BREAK_THE_CELL", "1")
    with pytest.raises(RunError, match=r"trained, but its notebook failed: see .*mine\.failed\.ipynb"):
        sweep(grid, ThroughTheNotebook())
    (folder,) = [run_folder(config, "group") for config in grid.configs]
    assert (folder / "DONE").exists() and run_status(folder, "mine").state == "failed"
    assert run_status(folder).state == "finished"
    monkeypatch.delenv("BREAK_THE_CELL")
    with pytest.raises(RunError, match="its notebook failed"):
        sweep(grid, backend := ThroughTheNotebook())
    assert not backend.commands
    sweep(grid, ThroughTheNotebook(), retry=True)
    assert (folder / "mine.ipynb").exists() and not (folder / "mine.failed.ipynb").exists()


def test_run_that_another_process_finished_in_the_meantime_is_left_as_it_is(tiny_config, monkeypatch):
    config = tiny_config(**SHORT)
    original = RunFolder.attempt

    def attempt(run):
        (run.path / "DONE").touch()  # while this process waited for the lock
        return original(run)

    monkeypatch.setattr(RunFolder, "attempt", attempt)
    folder = train(config, "group", progress=False)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "DONE", "config.json"]
