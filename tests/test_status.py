"""How far runs are, from their folders."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from k24lab import cli
from k24lab.errors import RunError
from k24lab.lab.runs import CHECKPOINT, FAILED, RunFolder, is_locked, run_folder
from k24lab.lab.status import last_t_env, print_status, run_status, state_line, status_table


@pytest.fixture
def make_run(tiny_config):
    def make(seed=0, steps=None, **changes):
        config = tiny_config(seed=seed, **changes)
        run = RunFolder(run_folder(config, "group"), config)
        if steps is not None:
            (run.path / "metrics.jsonl").write_text(json.dumps({"t_env": steps}) + "\n")
        return run

    return make


def test_state_of_a_run_from_its_folder(make_run):
    assert run_status(make_run(0).path)[2:] == ("waiting", 0, "")
    assert run_status(make_run(1, steps=400).path)[2:] == ("stopped", 400, "")
    with (run := make_run(2, steps=800)).attempt():
        assert run_status(run.path)[2:] == ("running", 800, "")
    assert run_status(run.path).state == "stopped"
    with pytest.raises(ValueError, match="boom"), (run := make_run(3, steps=800)).attempt():
        raise ValueError("boom")
    assert run_status(run.path)[2:] == ("failed", 800, "ValueError: boom")
    (run := make_run(4, steps=1604)).finish({})
    assert run_status(run.path)[2:] == ("finished", 1600, "")


def test_a_finished_run_is_shown_with_the_env_steps_that_it_has(make_run):
    (longer := make_run(0, steps=1604)).finish({})
    (exact := make_run(1, steps=1600)).finish({})
    assert state_line(longer.path) == "finished, 1604 env steps, t_max = 1600"
    assert state_line(exact.path) == "finished, 1600 of 1600 env steps"
    assert state_line(make_run(2, steps=400).path) == "stopped, 400 of 1600 env steps"


def test_interrupted_attempt_is_no_failure_and_frees_the_run(make_run):
    run = make_run()
    with pytest.raises(KeyboardInterrupt), run.attempt():
        raise KeyboardInterrupt
    assert not (run.path / FAILED).exists() and not is_locked(run.path)


def test_interruption_in_the_middle_of_a_checkpoint_is_no_failure_and_keeps_the_last_one(make_run, monkeypatch):
    run = make_run()
    state = {"weights": torch.arange(100_000.0)}
    run.save_checkpoint(state)
    whole = (run.path / CHECKPOINT).read_bytes()

    def stopped_halfway(file, *_):
        file.write(whole[: len(whole) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr("k24lab.lab.tensorfile.write", stopped_halfway)
    with pytest.raises(KeyboardInterrupt), run.attempt():
        run.save_checkpoint(state)
    assert not (run.path / FAILED).exists() and not is_locked(run.path)
    assert (run.path / CHECKPOINT).read_bytes() == whole


def test_new_attempt_takes_the_error_of_the_last_one_away(make_run):
    run = make_run()
    (run.path / FAILED).write_text("old")
    with run.attempt():
        assert not (run.path / FAILED).exists()


@pytest.mark.parametrize(
    ("text", "t_env"),
    [("", 0), ('{"t_env": 5}\n{"t_e', 5), ("[]\n", 0), ('{"loss": 1}\n', 0), ('{"t_env": 7}\n' * 5000, 7)],
)
def test_last_env_step_of_a_metrics_file_in_whatever_state(text, t_env, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert last_t_env(tmp_path / "metrics.jsonl") == t_env
    assert last_t_env(tmp_path / "none.jsonl") == 0


def test_table_counts_states_by_task_and_variant(make_run):
    make_run(0).finish({})
    paths = [make_run(0).path, make_run(1, steps=800).path, make_run(0, method="fups").path]
    table = status_table([run_status(path) for path in paths])
    assert table == [
        {"task": "rolenav", "variant": "k24", "finished": 1, "running": 0, "failed": 0, "stopped": 1, "waiting": 0}
        | {"% done": 75},
        {"task": "rolenav", "variant": "fups", "finished": 0, "running": 0, "failed": 0, "stopped": 0, "waiting": 1}
        | {"% done": 0},
    ]


def test_status_of_a_grid_file_names_runs_that_have_no_folder_yet_and_errors(make_run, tmp_path, capsys):
    run = make_run()
    (run.path / FAILED).write_text("ValueError: boom\n")
    config = dataclasses.asdict(run.config)
    (tmp_path / "group.yaml").write_text(json.dumps({"common": config, "grids": [{"seed": [0, 1]}]}))
    print_status(tmp_path / "group.yaml")
    out = capsys.readouterr().out
    assert f"failed: {run.path}: ValueError: boom" in out
    assert out.splitlines()[1].split() == ["rolenav", "k24", "0", "0", "1", "0", "1", "0"]
    assert not (tmp_path / "runs" / "group" / run_folder(run.config, "x").name.replace("s0", "s1")).exists()


def test_status_of_a_group_and_of_nothing(make_run, capsys, monkeypatch):
    make_run(steps=400)
    monkeypatch.setattr("sys.argv", ["k24lab", "status", "group"])
    cli.main()
    assert "25" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"no runs in .*nothing: unknown group 'nothing'.*group"):
        print_status(Path("nothing"))


def test_run_whose_configuration_is_damaged_does_not_hide_the_others(make_run, capsys):
    make_run(steps=400)
    damaged = make_run(1).path / "config.json"
    damaged.write_text("{")
    print_status(Path("group"))
    out = capsys.readouterr().out
    assert f"left out: {damaged} cannot be used" in out and "25" in out.splitlines()[-1]
