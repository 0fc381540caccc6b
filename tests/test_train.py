import dataclasses
import json
import sys

import pytest
import short_runs
import torch
from short_runs import metrics

from k24lab.envs.registry import make_env
from k24lab.envs.rolenav import RoleNav
from k24lab.errors import ConfigError, RunError, RunWarning
from k24lab.lab.config import build_config
from k24lab.lab.runs import RunFolder
from k24lab.lab.train import Trainer, train
from k24lab.ops.library import threads, use_threads

tiny_config = short_runs.tiny_config  # a fixture

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


def test_training_leaves_threads_and_the_global_generator_as_they_were(tiny_config, tmp_path):
    use_threads(2)
    kept = threads(), torch.get_num_threads(), torch.get_rng_state()
    try:
        train(tiny_config(n_threads=1), folder=tmp_path, progress=False)
        assert (threads(), torch.get_num_threads()) == kept[:2] and torch.equal(torch.get_rng_state(), kept[2])
    finally:
        use_threads(1)


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
