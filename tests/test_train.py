import dataclasses
import itertools
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import TINY
from safetensors.torch import save_file

from k24lab.envs.registry import make_env
from k24lab.envs.rolenav import RoleNav
from k24lab.errors import ConfigError, RunError, RunWarning
from k24lab.lab import runs, tensorfile
from k24lab.lab.config import build_config
from k24lab.lab.provenance import FILE
from k24lab.lab.runs import CHECKPOINT, LOCK, PREVIOUS, RunFolder, atomic_write, read_config, run_folder
from k24lab.lab.train import Trainer, train
from k24lab.methods import get_method

# As many steps in shorter episodes: 200 an iteration, 1600 in all.
SHORT = TINY | {"task": "rolenav:episode_limit=10", "n_envs": 20}
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


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.fixture
def tiny_config():
    """Make a tiny configuration with short episodes."""
    return lambda **changes: build_config(SHORT | changes)


def metrics(path):
    return (path / "metrics.jsonl").read_bytes()


def rows(path):
    return [json.loads(line) for line in metrics(path).splitlines()]


def run_to_end(config, path):
    """Train in `path`; returns the run's whole state at its end, replay included, times left out."""
    trainer = Trainer(config, RunFolder(path, config))
    trainer.run_to_end(progress=False)
    state = trainer.state_dict()
    trainer.close()
    return {key: value for key, value in state.items() if key != "seconds"}


def interrupt(monkeypatch, config, path, after: int):
    """Train in `path` until the `after`-th iteration has ended."""
    count, original = itertools.count(1), Trainer._iteration

    def iteration(self):
        original(self)
        if next(count) == after:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_iteration", iteration)
        with pytest.raises(Interrupted):
            train(config, folder=path, progress=False)


def assert_same(a, b, where="state"):
    if torch.is_tensor(a):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{k}]")
    else:
        assert a == b, where


def no_temporary_files(path):
    return not [p for p in path.rglob("*") if p.name.endswith(".tmp")]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A finished k24 run that no test changes: its configuration, folder and state."""
    torch.set_num_threads(1)
    config, path = build_config(SHORT), tmp_path_factory.mktemp("unbroken") / "run"
    return config, path, run_to_end(config, path)


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
    train(config, folder=broken, progress=False)
    assert metrics(broken) == metrics(path)


def test_checkpoint_is_read_without_running_code_in_it(tiny_config, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    torch.save({"format": Evil()}, tmp_path / CHECKPOINT)
    with pytest.raises(RunError, match="cannot be read"):
        runs.read_checkpoint(tmp_path / CHECKPOINT, "x")
    assert not (tmp_path / "evil").exists()


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


# --- learning --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_masks_tell_apart_agents_that_nothing_in_their_observation_tells_apart(tmp_path):
    quick = {
        "t_max": 24_000,
        "hidden_dim": 32,
        "n_envs": 16,
        "batch_size": 16,
        "updates_per_rollout": 6,
        "lr": 3e-3,
        "gamma": 0.9,
        "epsilon_anneal_steps": 8_000,
        "polyak": 0.02,  # a short run has few updates
        "temperature_init": 1.0,
        "temperature_mid": 0.5,
        "anneal_end": 0.33,
        "test_interval": 24_000,
        "log_interval": 24_000,
        "snapshot_interval": 24_000,
    }
    returns = {}
    for method in ("k24", "fups"):
        path = train(build_config(quick | {"method": method}), folder=tmp_path / method, progress=False)
        returns[method] = json.loads((path / "summary.json").read_text())["test_return_mean"]
    assert returns["fups"] < 1.46 < 2.0 < returns["k24"]  # 1.46: the most without an identity


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("method", "pipeline"), [("k24", False), ("nops", False), ("k24", True)])
def test_tiny_run_on_the_gpu_can_be_interrupted_and_finishes(method, pipeline, tiny_config, tmp_path, monkeypatch):
    config = tiny_config(method=method, device="cuda", mixer="qmix", pipeline=pipeline)
    interrupt(monkeypatch, config, tmp_path / "run", after=5)
    path = train(config, folder=tmp_path / "run", progress=False)
    assert (path / "DONE").exists()
    assert [row["t_env"] for row in rows(path) if "test_return_mean" in row] == [0, 400, 800, 1200, 1600]


def test_costly_environments_are_evaluated_in_place(tiny_config, tmp_path, monkeypatch):
    made = []

    def make(task, n_envs, *where):
        env = make_env(task, n_envs, *where)
        env.spec = dataclasses.replace(env.spec, costly=True)
        made.append(n_envs)
        return env

    monkeypatch.setattr("k24lab.lab.train.make_env", make)
    config = tiny_config(method="fups", n_envs=3, test_episodes=7, batch_size=3)
    trainer = Trainer(config, RunFolder(tmp_path / "run", config))
    episodes = trainer._test_batch()
    assert made == [3] and len(episodes.reward) == 9
    first = episodes.obs[:, 0].flatten(1)
    assert len(first.unique(dim=0)) == 9  # nine different beginnings
    assert torch.equal(trainer._test_batch().obs, episodes.obs)  # and the same ones at each evaluation
    trainer.close()


def test_worker_processes_change_no_number_of_a_run(tiny_config, tmp_path):
    runs = [
        train(tiny_config(task="mpe2/simple_spread", n_workers=n), folder=tmp_path / str(n), progress=False)
        for n in (0, 2)
    ]
    assert metrics(runs[0]) == metrics(runs[1]) and runs[0] != runs[1]
    assert tiny_config(n_workers=2).hash() == tiny_config().hash()


def test_summary_names_the_unit_types(tiny_config, tmp_path):
    config = tiny_config(task="rolenav:n_types=2", mask_per="type", t_max=200)
    summary = json.loads((train(config, folder=tmp_path, progress=False) / "summary.json").read_text())
    assert summary["unit_type_names"] == ["goal 0", "goal 1"]


def test_workers_for_a_world_that_has_no_use_for_them_are_one_clear_error(tiny_config, tmp_path):
    with pytest.raises(ConfigError, match=r"n_workers = 2: 'rolenav' steps all its environments at once, allowed is 0"):
        train(tiny_config(n_workers=2), folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_every_step_of_a_resumed_run_once(tiny_config, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(tensorboard=True)
    interrupt(monkeypatch, config, tmp_path / "run", after=5)  # a checkpoint was written after the fourth
    train(config, folder=tmp_path / "run", progress=False)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    expected = [row["t_env"] for row in rows(tmp_path / "run") if "loss_td" in row]
    assert [event.step for event in events.Scalars("loss_td")] == expected


# --- what ends a run -------------------------------------------------------------------------------------------


def test_an_exit_ends_a_run_as_failed_and_not_the_process(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_iteration", lambda self: sys.exit(0))
    with pytest.raises(RunError, match=r"the run was ended by SystemExit: 0 \("):
        train(tiny_config(), folder=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "FAILED").read_text() == "SystemExit: 0\n"


@pytest.mark.parametrize("fails", [False, True])
def test_what_cannot_be_closed_is_a_warning_and_the_outcome_stays(fails, tiny_config, tmp_path, monkeypatch):
    def refuse(self):
        raise OSError("the pipe is gone")

    def fail(self):
        raise RuntimeError("the first error")

    monkeypatch.setattr(RoleNav, "close", refuse)
    monkeypatch.setattr("k24lab.lab.train.check_usable", lambda config: None)
    if fails:
        monkeypatch.setattr(Trainer, "_iteration", fail)
    path = tmp_path / "run"
    with pytest.warns(RunWarning, match=r"RoleNav could not be closed: OSError: the pipe is gone"):
        if fails:
            with pytest.raises(RuntimeError, match="the first error"):
                train(tiny_config(), folder=path, progress=False)
        else:
            train(tiny_config(), folder=path, progress=False)
    assert (path / "DONE").exists() != fails and (path / "FAILED").exists() == fails
