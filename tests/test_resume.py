"""Runs that are interrupted, or whose checkpoint is damaged, go on as if nothing had happened."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import short_runs
import torch
from safetensors.torch import save_file
from short_runs import Interrupted, assert_same, interrupt, metrics, rows, run_to_end

from k24lab.errors import RunError
from k24lab.inference.freeze import freeze_run
from k24lab.lab import runs, tensorfile
from k24lab.lab.runs import CHECKPOINT, PREVIOUS, RunFolder
from k24lab.lab.train import train
from k24lab.methods import get_method

tiny_config, unbroken = short_runs.tiny_config, short_runs.unbroken  # fixtures

KINDS = {
    "k24, vdn, periodic": {"method": "k24", "reset_threshold": 0.6},
    "k24, qmix, adaptive": {"method": "k24", "mixer": "qmix", "reset_trigger": "adaptive", "kl_threshold": 0.0},
    "k24-literal, independent": {"method": "k24-literal", "mixer": "none"},
    "random24, vdn, hard targets": {"method": "random24", "target_update": "hard", "target_update_interval": 3},
    "nops, qmix": {"method": "nops", "mixer": "qmix"},
    "fups-id, independent": {"method": "fups-id", "mixer": "none"},
    "kaleidoscope, qmix, periodic": {"method": "kaleidoscope", "mixer": "qmix", "reset_interval": 400},
    "magnitude24, vdn": {"method": "magnitude24"},
    "multih, vdn": {"method": "multih"},
    "k24, vdn, mpe": {"task": "mpe/simple_tag:prey=random,max_cycles=10"},
}


@pytest.fixture(scope="module")
def interrupted(unbroken, tmp_path_factory):
    """The same run, interrupted after the fifth of eight iterations; checkpoints after the second and the fourth."""
    path = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, unbroken[0], path, after=5)
    return path


@pytest.fixture
def broken(interrupted, tmp_path):
    """A copy of the interrupted run."""
    return shutil.copytree(interrupted, tmp_path / "broken")


# --- reproducible ----------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_numbers_and_another_seed_others(unbroken, tiny_config, tmp_path):
    config, path, state = unbroken
    torch.manual_seed(123)  # whatever came before
    again = run_to_end(config, tmp_path / "again")
    assert metrics(tmp_path / "again") == metrics(path)
    assert_same(again, state)
    other = run_to_end(tiny_config(seed=1), tmp_path / "other")
    ours, others = rows(path)[-2], rows(tmp_path / "other")[-2]
    assert ours["t_env"] == others["t_env"] and ours["loss_td"] != others["loss_td"]
    assert not torch.equal(other["replay"]["episodes"]["obs"], state["replay"]["episodes"]["obs"])


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_run_equals_the_unbroken_one_bit_for_bit(kind, tiny_config, tmp_path, monkeypatch):
    config = tiny_config(**KINDS[kind])
    state = run_to_end(config, tmp_path / "unbroken")
    interrupt(monkeypatch, config, tmp_path / "broken", after=5)  # checkpoints are made after 2, 4 and 6
    torch.manual_seed(123)
    resumed = run_to_end(config, tmp_path / "broken")
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "unbroken")
    assert_same(resumed, state)
    if get_method(config.method).learns_masks:
        assert state["learner"]["n_resets"] > 0
    masked = get_method(config.method).masks == "each" and config.method != "kaleidoscope"
    for name in ("policy.npz", *(f"patterns/{t:010d}.npz" for t in (0, 800, 1600) if masked)):
        with np.load(tmp_path / "broken" / name) as a, np.load(tmp_path / "unbroken" / name) as b:
            assert all(np.array_equal(a[key], b[key]) for key in b.files)


@pytest.mark.parametrize("stops", [(1,), (3, 4), (7, 1)])
def test_run_interrupted_before_its_first_checkpoint_or_twice_equals_the_unbroken_one(
    stops, unbroken, tmp_path, monkeypatch
):
    config, path, state = unbroken
    for after in stops:
        interrupt(monkeypatch, config, tmp_path / "broken", after)
    assert_same(run_to_end(config, tmp_path / "broken"), state)
    assert metrics(tmp_path / "broken") == metrics(path)


def test_torn_metrics_after_the_checkpoint_are_made_again(unbroken, broken):
    config, path, _ = unbroken
    with (broken / "metrics.jsonl").open("ab") as file:
        file.write(b'{"t_env": 1100, "loss_td": 0.0}\n' * 200 + b'{"t_env": 12')
    train(config, folder=broken, progress=False)
    assert metrics(broken) == metrics(path)


def test_checkpoint_right_after_a_torn_tail_knows_the_true_size(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(log_interval=10**6, test_interval=10**6, method="fups")
    train(config, folder=tmp_path / "unbroken", progress=False)
    interrupt(monkeypatch, config, tmp_path / "broken", after=3)
    with (tmp_path / "broken" / "metrics.jsonl").open("ab") as file:
        file.write(b"torn" * 1000)
    interrupt(monkeypatch, config, tmp_path / "broken", after=3)  # one checkpoint later, nothing logged since
    train(config, folder=tmp_path / "broken", progress=False)
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "unbroken")


@pytest.mark.parametrize("size", [None, 10])
def test_metrics_that_are_shorter_than_the_checkpoint_knows_are_an_error(size, tiny_config, tmp_path, monkeypatch):
    config = tiny_config(method="fups")
    interrupt(monkeypatch, config, tmp_path / "run", after=3)
    file = tmp_path / "run" / "metrics.jsonl"
    if size is None:
        file.unlink()
    else:
        os.truncate(file, size)
    with pytest.raises(RunError, match=r"metrics\.jsonl has \d+ bytes, its checkpoint knows of \d+"):
        train(config, folder=tmp_path / "run", progress=False)


def test_run_killed_between_its_last_checkpoint_and_done_equals_the_unbroken_one(unbroken, tmp_path, monkeypatch):
    config, path, _ = unbroken

    def kill(self, summary):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", kill)
        with pytest.raises(Interrupted):
            train(config, folder=tmp_path / "broken", progress=False)
    train(config, folder=tmp_path / "broken", progress=False)
    assert metrics(tmp_path / "broken") == metrics(path)
    summaries = [json.loads((p / "summary.json").read_text()) for p in (tmp_path / "broken", path)]
    for summary in summaries:
        assert summary.pop("seconds") > 0 and summary.pop("env_steps_per_s") > 0
    assert summaries[0] == summaries[1]


# --- damaged folders -------------------------------------------------------------------------------------------


def truncate(file, config):
    os.truncate(file, file.stat().st_size // 2)


def empty(file, config):
    file.write_bytes(b"")


def foreign(file, config):
    torch.save({"weights": torch.zeros(3)}, file)


def without_metadata(file, config):
    save_file({"weights": torch.zeros(3)}, file)


def one_bit(file, config):
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def newer_version(file, config):
    with file.open("wb") as opened:
        tensorfile.write(opened, {"format": "k24lab-checkpoint-99"}, {})


def other_configuration(file, config):
    state = runs.read_checkpoint(file, config.hash())
    with file.open("wb") as opened:
        runs.write_checkpoint(opened, state, "00000000")


DAMAGES = [truncate, empty, foreign, without_metadata, one_bit, newer_version, other_configuration]


@pytest.mark.parametrize("damage", DAMAGES)
def test_unusable_checkpoint_is_replaced_by_the_one_before_with_a_warning(damage, unbroken, broken):
    config, path, state = unbroken
    damage(broken / CHECKPOINT, config)
    with pytest.warns(UserWarning, match=r"checkpoint\.safetensors .*; going on from checkpoint\.prev\.safetensors"):
        resumed = run_to_end(config, broken)
    assert_same(resumed, state)
    assert metrics(broken) == metrics(path)


def test_missing_checkpoint_is_replaced_by_the_one_before(unbroken, broken):
    config, path, _ = unbroken
    (broken / CHECKPOINT).unlink()
    train(config, folder=broken, progress=False)
    assert metrics(broken) == metrics(path)


def test_folder_whose_checkpoints_are_all_unusable_is_one_clear_error(unbroken, broken):
    config, *_ = unbroken
    truncate(broken / CHECKPOINT, config)
    other_configuration(broken / PREVIOUS, config)
    with pytest.raises(RunError) as error:
        train(config, folder=broken, progress=False)
    message = str(error.value)
    assert "checkpoint.safetensors cannot be read, it is truncated or of another kind" in message
    assert f"belongs to config 00000000, not to this run's {config.hash()}" in message
    assert "delete the run folder to start afresh" in message and "\n" not in message


def test_kill_while_saving_after_a_damaged_checkpoint_loses_nothing(unbroken, broken, monkeypatch):
    config, path, _ = unbroken
    truncate(broken / CHECKPOINT, config)
    save, sync, saved = runs.write_checkpoint, os.fsync, []

    def note_save(file, *state):
        save(file, *state)
        saved.append(file)

    def kill_once_saved(fd):
        if saved:
            raise Interrupted
        sync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_checkpoint", note_save)
        patch.setattr(os, "fsync", kill_once_saved)
        with pytest.warns(UserWarning, match="going on from"), pytest.raises(Interrupted):
            train(config, folder=broken, progress=False)
    with pytest.warns(UserWarning, match="going on from"):
        train(config, folder=broken, progress=False)
    assert metrics(broken) == metrics(path)


def test_reading_a_run_whose_checkpoint_is_damaged_changes_no_file(unbroken, broken):
    config, *_ = unbroken
    truncate(broken / CHECKPOINT, config)
    before = {name: (broken / name).read_bytes() for name in (CHECKPOINT, PREVIOUS)}
    with pytest.warns(UserWarning, match="going on from"):
        assert runs.RunFolder(broken, config).load_checkpoint()["t_env"] == 400
    assert {name: (broken / name).read_bytes() for name in before} == before


def test_a_file_system_without_hard_links_has_a_reserve_too(unbroken, tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError("Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    config, path, _ = unbroken
    interrupt(monkeypatch, config, tmp_path / "run", after=5)
    kept = [runs.read_checkpoint(tmp_path / "run" / name, config.hash())["t_env"] for name in (PREVIOUS, CHECKPOINT)]
    assert kept == [400, 800]
    assert metrics(train(config, folder=tmp_path / "run", progress=False)) == metrics(path)


def test_checkpoint_is_read_without_running_code_in_it(tiny_config, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    torch.save({"format": Evil()}, tmp_path / CHECKPOINT)
    with pytest.raises(RunError, match="cannot be read"):
        runs.read_checkpoint(tmp_path / CHECKPOINT, "x")
    assert not (tmp_path / "evil").exists()


# --- on a GPU, with TensorBoard --------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "k24"},
        {"method": "nops"},
        {"method": "k24", "pipeline": True},
        {"method": "k24", "reset_trigger": "adaptive", "after_anneal": "frozen"},
        {"method": "kaleidoscope", "reset_trigger": "adaptive"},
    ],
)
def test_tiny_run_on_the_gpu_can_be_interrupted_and_finishes(changes, tiny_config, tmp_path, monkeypatch):
    config = tiny_config(device="cuda", mixer="qmix", **changes)
    interrupt(monkeypatch, config, tmp_path / "run", after=5)
    path = train(config, folder=tmp_path / "run", progress=False)
    assert (path / "DONE").exists()
    assert [row["t_env"] for row in rows(path) if "test_return_mean" in row] == [0, 400, 800, 1200, 1600]
    if changes["method"] == "k24":
        assert freeze_run(path).n_masks == 3  # on the CPU


def test_tensorboard_shows_every_step_of_a_resumed_run_once(tiny_config, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(tensorboard=True)
    interrupt(monkeypatch, config, tmp_path / "run", after=5)  # a checkpoint was written after the fourth
    train(config, folder=tmp_path / "run", progress=False)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    expected = [row["t_env"] for row in rows(tmp_path / "run") if "loss_td" in row]
    assert [event.step for event in events.Scalars("loss_td")] == expected
