"""What a run leaves in its folder, whole files only, and folders that are not its own."""

import itertools
import json
import shutil

import numpy as np
import pytest
import short_runs
import torch
from short_runs import Interrupted, assert_same, metrics, rows

from k24lab.errors import ConfigError, RunError
from k24lab.lab import runs
from k24lab.lab.provenance import FILE
from k24lab.lab.runs import CHECKPOINT, LOCK, atomic_write, read_config, run_folder
from k24lab.lab.train import train

tiny_config, unbroken = short_runs.tiny_config, short_runs.unbroken  # fixtures


def no_temporary_files(path):
    return not [p for p in path.rglob("*") if p.name.endswith(".tmp")]


# --- whose folder it is ----------------------------------------------------------------------------------------


def test_folder_of_another_configuration_is_refused_with_the_keys(unbroken, tiny_config):
    config, path, _ = unbroken
    before = metrics(path)
    with pytest.raises(RunError) as error:
        train(tiny_config(seed=5, lr=0.01), folder=path, progress=False)
    assert f"holds another run: lr = {config.lr} there, 0.01 here; seed = 0 there, 5 here" in str(error.value)
    assert metrics(path) == before


def test_settings_that_define_no_run_may_differ(unbroken, tiny_config):
    _, path, _ = unbroken
    assert train(tiny_config(n_threads=2), folder=path, progress=False) == path


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"lrr": 1}', b'{"lr": -1}'])
def test_unusable_config_file_is_a_clear_error(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RunError, match=r"config\.json cannot be used"):
        read_config(tmp_path)


def test_folder_without_config_is_no_run_folder(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(RunError, match="is no run folder"):
            read_config(path)


# --- what a run leaves -----------------------------------------------------------------------------------------


def test_finished_run_is_left_as_it_is(unbroken):
    config, path, _ = unbroken

    def snapshot():
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in path.rglob("*") if p.is_file()}

    before = snapshot()
    assert train(config, folder=path, progress=False) == path
    assert snapshot() == before


def test_finished_run_has_all_of_its_files(unbroken):
    config, path, _ = unbroken
    names = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    patterns = {f"patterns/{t:010d}.npz" for t in (0, 400, 800, 1200, 1600)}
    assert names == patterns | {"config.json", "metrics.jsonl", "summary.json", "policy.npz", CHECKPOINT, "DONE", FILE}
    assert read_config(path) == config


def test_metrics_have_the_steps_that_the_intervals_ask_for(unbroken):
    _, path, _ = unbroken
    tests = [row["t_env"] for row in rows(path) if "test_return_mean" in row]
    logs = [row["t_env"] for row in rows(path) if "loss_td" in row]
    assert tests == [0, 400, 800, 1200, 1600]
    assert logs == list(range(200, 1601, 200))
    assert all(row["update"] * 200 == row["episode"] * 10 == row["t_env"] for row in rows(path))
    assert all({"epsilon", "return_mean", "temperature"} <= row.keys() for row in rows(path) if "loss_td" in row)


def test_summary_repeats_the_last_value_of_every_metric(unbroken):
    _, path, _ = unbroken
    summary = json.loads((path / "summary.json").read_text())
    last = {key: value for row in rows(path) for key, value in row.items()}
    assert summary["updates"] == last.pop("update") and summary["episodes"] == last.pop("episode")
    assert {key: summary[key] for key in last} == last
    assert summary["test_return_std"] >= 0


def test_pattern_files_hold_index_and_law_of_every_layer(unbroken):
    _, path, state = unbroken
    agent = state["learner"]["agent"]
    with np.load(path / "patterns" / "0000001600.npz") as arrays:
        layers = {key.split("/")[0] for key in arrays.files}
        assert layers == {"fc1", "rnn_input", "rnn_hidden", "fc2", "fc3", "fc4"}
        for name in layers:
            out, in_features = agent[f"layers.{name}.weight"].shape
            index, probs = arrays[f"{name}/pattern_index"], arrays[f"{name}/pattern_probs"]
            assert index.shape == (3, out, in_features // 4) and index.dtype == np.uint8 and index.max() <= 5
            assert probs.shape == (*index.shape, 6) and probs.dtype == np.float16
            np.testing.assert_allclose(probs.sum(axis=-1, dtype=np.float32), 1, atol=5e-3)
            best = np.take_along_axis(probs, index[..., None].astype(int), axis=-1).squeeze(-1)
            assert (best >= probs.max(axis=-1) - 1e-3).all()


@pytest.mark.parametrize("method", ["k24", "nops"])
def test_policy_file_compares_all_agents_on_everybodys_observations(method, tiny_config, tmp_path):
    train(tiny_config(method=method, t_max=400), folder=tmp_path / "run", progress=False)
    seen = 4 * 10 * 3  # test episodes, steps, agents observed
    with np.load(tmp_path / "run" / "policy.npz") as arrays:
        assert arrays["q_values"].shape == (3, seen, 5) and arrays["avail_actions"].shape == (seen, 5)
        assert arrays["avail_actions"].all() and np.isfinite(arrays["q_values"]).all()
        assert not np.allclose(arrays["q_values"][0], arrays["q_values"][1])  # the agents differ
    assert (tmp_path / "run" / "patterns").exists() == (method == "k24")


def test_checkpoint_of_a_finished_run_has_no_replay_and_can_be_evaluated(unbroken):
    config, path, state = unbroken
    checkpoint = runs.read_checkpoint(path / CHECKPOINT, config.hash())
    assert checkpoint["replay"] is None and checkpoint["t_env"] == 1600
    assert_same(checkpoint["learner"], state["learner"])


def test_one_test_episode_has_no_spread(tiny_config, tmp_path):
    train(tiny_config(method="fups", t_max=400, test_episodes=1), folder=tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test_return_std"] == 0.0


def test_run_folder_name_is_readable_and_follows_from_the_configuration(tiny_config, home):
    config = tiny_config(task="rolenav:n_agents=4", seed=3)
    assert run_folder(config, "group") == home / "runs" / "group" / f"rolenav_n_agents_4-k24-s3-{config.hash()}"


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", "-x", ".hidden", "a b"])
def test_run_group_must_be_a_plain_folder_name(name, tiny_config):
    with pytest.raises(ConfigError, match="name = "):
        run_folder(tiny_config(), name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "rolenv"}, "did you mean 'rolenav'"),
        ({"task": "rolenav:n_agent=3"}, "did you mean 'n_agents'"),
        pytest.param(
            {"device": "cuda"},
            "torch finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device"),
        ),
    ],
)
def test_task_or_device_that_cannot_be_used_is_an_error_and_leaves_no_folder(changes, message, tiny_config, home):
    with pytest.raises(ConfigError, match=message):
        train(tiny_config(**changes), progress=False)
    assert not (home / "runs").exists()


# --- nothing half-written --------------------------------------------------------------------------------------


def test_failure_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(Interrupted), atomic_write(tmp_path / "file") as file:
        file.write(b"new and only ha")
        raise Interrupted
    assert (tmp_path / "file").read_text() == "old"
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_failure_in_the_middle_of_a_checkpoint_keeps_the_one_before(unbroken, tmp_path, monkeypatch):
    config, path, _ = unbroken
    original, count = runs.write_checkpoint, itertools.count(1)

    def save(file, *state):
        if next(count) == 3:
            file.write(b"half a checkpoint")
            raise Interrupted
        original(file, *state)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_checkpoint", save)
        with pytest.raises(Interrupted):
            train(config, folder=tmp_path / "broken", progress=False)
    assert no_temporary_files(tmp_path / "broken")
    assert runs.read_checkpoint(tmp_path / "broken" / CHECKPOINT, config.hash())["t_env"] == 800
    train(config, folder=tmp_path / "broken", progress=False)
    assert metrics(tmp_path / "broken") == metrics(path)


@pytest.mark.parametrize("wanted", [2, 6])  # a snapshot of the masks, the policy at the end
def test_failure_in_the_middle_of_an_array_file_leaves_no_half_of_it(wanted, unbroken, tmp_path, monkeypatch):
    config, path, _ = unbroken
    original, count = np.savez_compressed, itertools.count(1)

    def save(file, **arrays):
        if next(count) == wanted:
            file.write(b"PK half")
            raise Interrupted
        original(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", save)
        with pytest.raises(Interrupted):
            train(config, folder=tmp_path / "broken", progress=False)
    files = [*(tmp_path / "broken" / "patterns").iterdir(), *(tmp_path / "broken").glob("*.npz")]
    assert len(files) == wanted - 1 and not (tmp_path / "broken" / "DONE").exists()
    for file in files:
        np.load(file).close()
    assert no_temporary_files(tmp_path / "broken")
    train(config, folder=tmp_path / "broken", progress=False)
    assert {p.name for p in (tmp_path / "broken").rglob("*")} - {LOCK} == {p.name for p in path.rglob("*")}
    assert metrics(tmp_path / "broken") == metrics(path)


def test_run_without_done_is_not_taken_for_finished(unbroken, tmp_path):
    config, path, _ = unbroken
    shutil.copytree(path, tmp_path / "copy")
    (tmp_path / "copy" / "DONE").unlink()
    (tmp_path / "copy" / "summary.json").unlink()
    train(config, folder=tmp_path / "copy", progress=False)
    assert (tmp_path / "copy" / "summary.json").exists() and (tmp_path / "copy" / "DONE").exists()
    assert metrics(tmp_path / "copy") == metrics(path)
