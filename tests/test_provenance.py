"""Where a run comes from, and how it is shown."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest

from k24lab.errors import RunError, RunWarning
from k24lab.lab import provenance
from k24lab.lab.paths import CHECKOUT
from k24lab.lab.runs import find_folder
from k24lab.lab.status import describe_run
from k24lab.lab.train import train
from k24lab.ops import library as kernels


def git(folder, *command):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", folder, *who, *command], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def run(tiny_config, home):
    return train(tiny_config(method="k24", t_max=800, hidden_dim=24), "group", progress=False)


def test_a_run_knows_its_code_packages_machine_and_seed(run):
    (attempt,) = provenance.read(run)
    lock = hashlib.sha256((CHECKOUT / "requirements.lock").read_bytes()).hexdigest()
    assert attempt["lock"] == lock and attempt["seed"] == 0 and attempt["t_env"] == 0 and attempt["n_threads"] == 1
    assert attempt["packages"]["torch"].startswith("2.") and attempt["python"].startswith("3.11")
    assert attempt["cpu"] and attempt["n_cpus"] > 0 and attempt["device"] == "cpu"


def test_every_attempt_that_trains_adds_a_line_and_a_finished_run_none(tiny_config, home, monkeypatch):
    config = tiny_config(method="fups", t_max=1600, checkpoint_interval=400)
    from k24lab.lab.train import Trainer

    iteration, count = Trainer._iteration, iter(range(9))

    def stops(self):
        if next(count) == 2:
            raise KeyboardInterrupt
        iteration(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_iteration", stops)
        train(config, "group", progress=False)
    path = train(config, "group", progress=False)
    train(config, "group", progress=False)
    first, second = provenance.read(path)
    assert first["t_env"] == 0 and second["t_env"] > 0


def stopped_run(config, monkeypatch, after=3):
    """A run that was stopped after some rollouts, with a checkpoint."""
    from k24lab.lab.train import Trainer

    iteration, count = Trainer._iteration, iter(range(9))

    def stops(self):
        if next(count) == after:
            raise KeyboardInterrupt
        iteration(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_iteration", stops)
        train(config, "group", progress=False)


@pytest.fixture
def other_kernels(monkeypatch):
    """Switch the kernels off for the rest of the test."""
    if kernels.library() is None:
        pytest.skip("the CPU kernels are not built")

    def switch():
        monkeypatch.setenv(kernels.SWITCH, "torch")
        kernels.library.cache_clear()

    yield switch
    monkeypatch.undo()
    kernels.library.cache_clear()


def test_going_on_with_other_threads_or_kernels_is_a_warning(tiny_config, home, monkeypatch, other_kernels):
    config = tiny_config(t_max=1600, checkpoint_interval=400)
    built = kernels.describe()
    stopped_run(config, monkeypatch)
    with warnings.catch_warnings():
        stopped_run(config, monkeypatch, after=1)  # the same ones: no word
    said = rf"goes on with n_threads = 2 \(before: 1\), kernels = 'torch' \(before: '{built}'\): .* last digits"
    other_kernels()
    with pytest.warns(RunWarning, match=said):
        path = train(dataclasses.replace(config, n_threads=2), "group", progress=False)
    attempts = provenance.read(path)
    assert [(a["n_threads"], a["kernels"]) for a in attempts] == [(1, built), (1, built), (2, "torch")]
    assert json.loads((path / "summary.json").read_text())["kernels"] == "torch"


def test_an_attempt_that_left_nothing_is_not_what_a_run_goes_on_from(tiny_config, home, monkeypatch):
    config = tiny_config(t_max=1600, checkpoint_interval=400)
    stopped_run(dataclasses.replace(config, n_threads=2), monkeypatch, after=0)
    train(config, "group", progress=False)  # warnings are errors


def test_the_kernels_in_force_are_recorded_not_those_that_are_built(tiny_config, home):
    path = train(tiny_config(method="fups", t_max=400, n_threads=3), "group", progress=False)
    (attempt,) = provenance.read(path)
    assert (
        attempt["kernels"] == "torch" and attempt["n_threads"] == 3
    )  # the kernels leave more than two threads to torch


@pytest.mark.parametrize(
    ("change", "same"), [({"n_threads": 3}, False), ({"n_workers": 2}, True), ("kernels", False), ({}, True)], ids=str
)
def test_what_is_the_same_to_the_bit_is_as_the_readme_says(change, same, tiny_config, home, other_kernels):
    config = tiny_config(task="mpe2/simple_spread", t_max=800, hidden_dim=64)
    paths = [train(config, "one", progress=False)]
    if change == "kernels":
        other_kernels()
        change = {}
    paths.append(train(dataclasses.replace(config, **change), "two", progress=False))
    one, two = ((path / "metrics.jsonl").read_bytes() for path in paths)
    assert paths[0].name == paths[1].name and (one == two) == same
    rows = [[json.loads(line) for line in text.splitlines()] for text in (one, two)]
    assert rows[0][0] == rows[1][0]  # the untrained network
    losses = [[row["loss_td"] for row in each if "loss_td" in row] for each in rows]
    assert len(losses[0]) > 1 and losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_commit_and_changed_files_are_those_of_the_checkout(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    (tmp_path / "b.py").write_text("1\n")
    git(tmp_path, "add", "."), git(tmp_path, "commit", "-qm", "first")
    (tmp_path / "new.py").write_text("untracked\n")
    clean = provenance._code.__wrapped__(tmp_path)
    assert clean == {"commit": git(tmp_path, "rev-parse", "HEAD"), "changed": [], "lock": None}
    (tmp_path / "b.py").write_text("2\n")
    assert provenance._code.__wrapped__(tmp_path)["changed"] == ["b.py"]


def test_a_package_inside_someone_elses_repository_has_no_commit(tmp_path):
    git(tmp_path, "init", "-q")
    (inner := tmp_path / "site-packages").mkdir()
    assert provenance._code.__wrapped__(inner) == {"commit": None, "changed": None, "lock": None}


def test_a_damaged_file_shows_what_can_be_read(tmp_path):
    assert provenance.read(tmp_path) == []
    (tmp_path / provenance.FILE).write_bytes(b'{"seed": 1}\n[2]\n\xff\n{"seed": 3')
    assert provenance.read(tmp_path) == [{"seed": 1}]


def test_a_run_is_shown_with_settings_results_and_origin(run):
    text = " ".join(describe_run(find_folder(run.name)).split())
    summary = json.loads((run / "summary.json").read_text())
    for part in (
        "finished, 800 of 800 env steps",
        "hidden_dim 24",
        f"test_return_mean {summary['test_return_mean']:.6g}",
        "attempt 1",
        "torch 2.",
    ):
        assert part in text, text
    assert "logit_scale" not in text  # the method's own
    (run / "DONE").unlink()
    assert "stopped, " in describe_run(run)


def test_a_run_that_is_not_there_or_in_two_groups_is_an_error(run, home, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("K24LAB_HOME", str(home / "empty"))
        with pytest.raises(RunError, match=f"no run '{run.name}': .* none of the 0 in .*empty"):
            find_folder(run.name)
    with pytest.raises(RunError, match=f"no run '{run.name}x': .* none of the 1 in .*; did you mean '{run.name}'"):
        find_folder(run.name + "x")
    shutil.copytree(run, run.parent.parent / "other" / run.name)
    with pytest.raises(RunError, match=rf"is one of 2: group/{run.name}, other/{run.name}$"):
        find_folder(run.name)
    assert find_folder(f"other/{run.name}").parent.name == "other"
    shutil.rmtree(run.parent.parent / "other")
    assert find_folder(run.name[:-3]) == run  # where no other run begins so


def test_figures_name_the_runs_that_they_come_from_and_their_code(run, home):
    from k24lab.analysis import export, load as results
    from k24lab.lab.find_runs import find_runs
    from k24lab.lab.importer import import_runs

    found = find_runs("group")
    (line,) = [json.loads(line) for line in export.sources(found).splitlines()]
    (attempt,) = line["attempts"]
    assert line["run"] == f"group/{run.name}" and attempt["packages"]["torch"] and "started" not in attempt
    raw = export.run_lines(results.load_metrics(found), results.load_summaries(found))
    (home / "raw_runs.jsonl").write_text(raw)
    import_runs([home / "raw_runs.jsonl"], "copies")
    (line,) = [json.loads(line) for line in export.sources(find_runs("copies")).splitlines()]
    assert line == {"run": f"copies/{run.name}", "attempts": [{"imported": "raw_runs.jsonl"}]}


def test_a_reader_that_has_enough_is_no_error(run):
    reading, writing = os.pipe()
    os.close(reading)
    line = [sys.executable, "-m", "k24lab", "show", run]
    done = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 1 and done.stderr == ""
