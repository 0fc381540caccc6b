"""Faults injected for real: processes killed, disks full or read-only, files gone. `make test-faults` injects more.

A run that is trained by a process of its own is killed with SIGKILL, at a random moment or at a random call of the
system that writes its files, and gone on with until it ends. Every file must then be that of a run left in peace.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from attempts import start
from conftest import TINY
from processes import gone
from test_tensorfile import same

from k24lab.lab.runs import CHECKPOINT, PREVIOUS, read_checkpoint, read_config
from k24lab.lab.status import last_t_env

N_KILLS = int(os.environ.get("K24LAB_FAULTS", "8"))  # of each test that kills
CONFIGS = [
    TINY | {"method": "k24", "learner": "nq", "mixer": "qmix", "checkpoint_interval": 200},
    TINY | {"method": "kaleidoscope", "checkpoint_interval": 200},
]
each_config = pytest.mark.parametrize("fields", CONFIGS, ids=[fields["method"] for fields in CONFIGS])


def same_files(a: Path, b: Path) -> bool:
    """Metrics, masks, policies and checkpoints, bit for bit; summaries but for the seconds."""
    names = sorted(p.relative_to(a) for p in a.rglob("*.npz"))
    assert names and names == sorted(p.relative_to(b) for p in b.rglob("*.npz"))
    for name in names:
        with np.load(a / name) as x, np.load(b / name) as y:
            assert set(x) == set(y) and all(np.array_equal(x[key], y[key], equal_nan=True) for key in x), name
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    summaries = [json.loads((p / "summary.json").read_text()) for p in (a, b)]
    for summary in summaries:
        del summary["seconds"], summary["env_steps_per_s"]
    assert summaries[0] == summaries[1]
    states = [read_checkpoint(p / CHECKPOINT, read_config(p).hash()) for p in (a, b)]
    for state in states:
        del state["seconds"]
    assert same(*states)
    assert not [*a.glob(PREVIOUS), *a.rglob(".*.tmp")]
    return True


def finished(process) -> bool:
    """Wait for the end; whether it was the run's own."""
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


@pytest.fixture
def quiet(fields, tmp_path):
    """The run left in peace, the seconds that it took, and the calls that changed its files."""
    assert finished(start(fields | {"t_max": 1}, tmp_path / "first"))  # loads torch
    began = time.monotonic()
    assert finished(start(fields, tmp_path / "quiet"))
    return tmp_path / "quiet", time.monotonic() - began, int((tmp_path / "calls").read_text())


def wait_for_a_random_moment(process, folder, chance, seconds):
    """Some moment of the next `seconds`, of which loading takes most; without them one 1 to 3 log lines further."""
    if seconds is None:
        metrics = folder / "metrics.jsonl"
        t_env = last_t_env(metrics) + chance.randint(1, 3) * TINY["log_interval"]
        while process.is_alive() and last_t_env(metrics) < t_env:
            time.sleep(0.001)
        seconds = 0.05
    process.join(chance.uniform(0.0, seconds))


@each_config
def test_a_run_killed_at_random_moments_ends_as_if_left_in_peace(fields, quiet, tmp_path):
    expected, seconds, _ = quiet
    chance, kills, runs, places = random.Random(1), 0, 0, set()
    while kills < N_KILLS:
        folder, runs = tmp_path / f"run{runs}", runs + 1
        while not (folder / "DONE").exists():
            process = start(fields, folder)
            if kills < N_KILLS:
                wait_for_a_random_moment(process, folder, chance, 1.2 * seconds if kills % 2 else None)
                process.kill()
            if not finished(process):
                kills += 1
                places.add(last_t_env(folder / "metrics.jsonl"))
        assert same_files(folder, expected)
        shutil.rmtree(folder)
    assert len(places) > 2  # all over the run, not in its first moments only
    print(f"\n{fields['method']}: {kills} kills at {len(places)} places of {runs} runs, all equal to the unbroken one")


@each_config
def test_a_run_killed_while_it_writes_ends_as_if_left_in_peace(fields, quiet, tmp_path):
    expected, _, n_calls = quiet
    chance, kills, halves = random.Random(2), 0, 0
    for k in range(N_KILLS):
        folder = tmp_path / f"run{k}"
        first = 1 if k == 1 else chance.randrange(n_calls)  # 1: config.json is written and has not taken its place
        at = {"half": chance.randrange(6)} if k % 4 == 0 else {"die_at": first}
        halves += not finished(start(fields, folder, *(at.get(key) for key in ("die_at", "half")))) and k % 4 == 0
        kills += not (folder / "DONE").exists()
        assert finished(start(fields, folder)) and same_files(folder, expected)
        shutil.rmtree(folder)
    assert kills > N_KILLS // 2 and halves
    print(f"\n{fields['method']}: {kills} kills in {n_calls} writing calls, {halves} inside a checkpoint, all equal")


# --- disks, folders and signals, as a user meets them ------------------------------------------------------------


SETTINGS = "--t-max 6400 --n-envs 8 --batch-size 8 --hidden-dim 16 --checkpoint-interval 200 --quiet".split()


@pytest.fixture
def command():
    """Start `k24lab train` with a home and further settings; whatever still runs at the end is killed."""
    with contextlib.ExitStack() as stack:

        def begin(home, *more):
            environment = os.environ | {"K24LAB_HOME": str(home), "OMP_NUM_THREADS": "1"}
            line = [sys.executable, "-m", "k24lab", "train", *SETTINGS, *more]
            pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = stack.enter_context(subprocess.Popen(line, env=environment, **pipe))
            stack.callback(process.kill)
            return process

        yield begin


def wait_for_checkpoint(home, seconds=120.0):
    end = time.monotonic() + seconds
    while not list(home.glob("runs/*/*/" + CHECKPOINT)):
        assert time.monotonic() < end
        time.sleep(0.01)


def ended(process) -> tuple[int, list[str]]:
    """Exit code, and what it said of errors."""
    said = process.communicate(timeout=120)[1]
    return process.returncode, said.strip().splitlines()


@pytest.fixture
def disk(tmp_path):
    """A file system in memory, mounted with options: `disk("size=1m")`; unmounted at the end."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a file system needs root")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", folder], capture_output=True)


def is_one_line(process, message):
    code, said = ended(process)
    return code == 2 and len(said) == 1 and said[0].startswith("k24lab: error: ") and message in said[0]


def test_a_disk_that_is_full_or_read_only_is_one_line_and_the_run_goes_on_later(disk, command, tmp_path):
    quiet, home = command(tmp_path / "quiet"), disk("size=60m")
    process = command(home)
    wait_for_checkpoint(home)
    with contextlib.suppress(OSError), (home / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    assert is_one_line(process, "No space left on device")
    (home / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", home], check=True)
    assert is_one_line(command(home), "Read-only file system")
    subprocess.run(["mount", "-o", "remount,rw", home], check=True)
    assert ended(command(home)) == (0, []) == ended(quiet)
    assert same_files(*(next(root.glob("runs/*/*/DONE")).parent for root in (home, tmp_path / "quiet")))


def test_a_run_whose_folder_is_gone_ends_with_one_line(command, tmp_path):
    process = command(tmp_path)
    wait_for_checkpoint(tmp_path)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    code, said = ended(process)
    assert code == 2 and len(said) == 1 and "is gone: " in said[0]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("more", [(), ("--task", "mpe2/simple_spread", "--n-workers", "2")], ids=["serial", "workers"])
def test_a_signal_ends_a_run_within_five_seconds_and_it_goes_on(stop, more, command, tmp_path):
    process = command(tmp_path, *more)
    wait_for_checkpoint(tmp_path)
    family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    began = time.monotonic()
    process.send_signal(stop)
    code, said = ended(process)
    crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # on a busy machine everything takes so much longer
    assert time.monotonic() - began < 5 * crowd and gone(family)
    assert code == 130 and len(said) == 1 and "goes on from the last checkpoint" in said[0]
    (checkpoint,) = tmp_path.glob("runs/*/*/" + CHECKPOINT)
    assert not (checkpoint.parent / "FAILED").exists() and read_checkpoint(checkpoint, checkpoint.parent.name[-8:])
    assert ended(command(tmp_path, *more)) == (0, [])
