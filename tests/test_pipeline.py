"""The setting `pipeline`: which weights collect which episodes, the same bits always, and how errors come out."""

import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from attempts import start
from odd_environments import Base
from processes import gone
from short_runs import SHORT, assert_same, interrupt, metrics, run_to_end
from test_faults import same_files

from k24lab.envs.rolenav import RoleNav
from k24lab.errors import ConfigError, RunError
from k24lab.lab.checks import check_usable
from k24lab.lab.config import Config, build_config
from k24lab.lab.runs import RunFolder
from k24lab.lab.train import Trainer, train
from k24lab.marl.seeding import Stream

# 200 env steps an iteration, 800 in all; what is drawn at each step of acting, and what resets change, counts too.
DRAWN = {"method": "k24-literal", "acting_masks": "drawn", "reset_threshold": 0.6}
KINDS = {"drawn masks": DRAWN, "nops, qmix": {"method": "nops", "mixer": "qmix", "updates_per_rollout": 3}}
PIPELINE = SHORT | {"pipeline": True, "t_max": 800, "checkpoint_interval": 200, "reset_interval": 200}
PIPELINE |= {"epsilon_start": 0.5, "epsilon_anneal_steps": 600}  # most actions are the network's


class Fails(Base):
    """Fails as it is told to, but only where it is in a process of its own: tests and checks are not."""

    def __init__(self, how="raises", **kw):
        super().__init__(**kw)
        self.how = how if multiprocessing.parent_process() else ""

    def pay(self, agent, action):
        if self.t == 3 and self.how == "raises":
            raise OSError("broken")
        if self.t == 3 and self.how == "dies":
            os._exit(7)
        return super().pay(agent, action)

    def see(self, agent):
        return super().see(agent) * (np.nan if self.t == 3 and self.how == "nan" else 1)


def one_rollout_late(config, path):
    """The state after a run in this process alone whose rollouts are played with the weights of one rollout before."""
    config = replace(config, pipeline=False)
    trainer = Trainer(config, RunFolder(path, config))
    agent, collect, older = trainer.learner.agent, trainer._collect, []

    def collect_late(env, epsilon, stream, counter):
        if stream != Stream.TRAIN_EPISODES:
            return collect(env, epsilon, stream, counter)
        older.append({name: value.clone() for name, value in agent.state_dict().items()})
        agent.load_state_dict(older[max(counter - 1, 0)])
        batch = collect(env, epsilon, stream, counter)
        agent.load_state_dict(older[counter])
        return batch

    trainer._collect = collect_late
    trainer.run_to_end(progress=False)
    state = trainer.state_dict() | {"ahead": older[-2]}  # what the last rollout was played with
    trainer.close()
    return {key: value for key, value in state.items() if key != "seconds"}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_one_rollout_older_and_every_repetition_and_resumed_run_has_the_same_bits(
    kind, tmp_path, monkeypatch
):
    config = build_config(PIPELINE | KINDS[kind])
    expected = one_rollout_late(config, tmp_path / "expected")
    state = run_to_end(config, tmp_path / "unbroken")
    assert_same(state, expected)
    interrupt(monkeypatch, config, tmp_path / "broken", after=2)
    torch.manual_seed(123)
    assert_same(run_to_end(config, tmp_path / "broken"), state)
    assert metrics(tmp_path / "unbroken") == metrics(tmp_path / "expected") == metrics(tmp_path / "broken")


def test_a_kill_ends_both_processes_and_the_run_goes_on_with_the_same_bits(tmp_path):
    process = start(PIPELINE, tmp_path / "run")
    while not (tmp_path / "run" / "checkpoint.safetensors").exists():
        assert process.is_alive()
    family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and gone(family)
    for name in ("run", "quiet"):
        train(build_config(PIPELINE), folder=tmp_path / name, progress=False)
    assert same_files(tmp_path / "run", tmp_path / "quiet")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", r"^environment 0: step 3 raised OSError: broken \(test_pipeline\.py, line \d+\)$"),
        ("nan", r"^environment 0: .*nan"),
        ("dies", r"^the process that collects episodes has died \(exit code 7\); resume the run from its last"),
    ],
)
def test_what_fails_in_the_collector_ends_the_run_with_one_message_and_both_processes(how, said, tmp_path):
    before = psutil.Process().children(recursive=True)
    task = f"pettingzoo/test_pipeline:Fails:how={how}"
    with pytest.raises(RunError, match=said) as error:
        train(build_config(PIPELINE | {"task": task, "n_envs": 2}), folder=tmp_path / "run", progress=False)
    assert "\n" not in str(error.value)
    assert (tmp_path / "run" / "FAILED").read_text() == f"RunError: {error.value}\n"
    left = [p for p in psutil.Process().children(recursive=True) if p not in before and p.status() != "zombie"]
    assert len(left) <= 2  # the server that children are forked from, and what tracks its resources


def test_it_is_off_by_default_and_refuses_what_it_cannot_do(monkeypatch):
    assert not Config().pipeline
    with pytest.raises(ConfigError, match="n_workers = 2 must be 0 with pipeline = True"):
        Config(pipeline=True, n_workers=2)
    build = RoleNav.__init__

    def costly(self, *arguments, **options):
        build(self, *arguments, **options)
        self.spec = replace(self.spec, costly=True)

    monkeypatch.setattr(RoleNav, "__init__", costly)
    check_usable(Config())
    with pytest.raises(ConfigError, match="pipeline = True: 'rolenav' is tested in the environments of training"):
        check_usable(Config(pipeline=True))
