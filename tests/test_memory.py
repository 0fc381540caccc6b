"""Runs that no machine can hold are refused before they start; those that are only large are not."""

import re

import pytest
from conftest import TINY

from k24lab.envs.registry import make_env
from k24lab.errors import ConfigError
from k24lab.lab import checks
from k24lab.lab.checks import check_memory, n_parameters
from k24lab.lab.config import build_config
from k24lab.lab.train import train
from k24lab.marl.learner import build_learner
from k24lab.marl.replay import ReplayBuffer
from k24lab.methods import METHODS


@pytest.fixture
def spec():
    return make_env("rolenav", 1).spec


@pytest.mark.parametrize(
    "setting, largest",
    [
        ({"hidden_dim": 10**12}, r"networks and their optimizer \(hidden_dim = 1000000000000\)"),
        ({"buffer_size": 10**9}, r"buffer_size = 1000000000 episodes"),
        ({"test_episodes": 10**9}, r"1000000000 episodes played side by side \(n_envs, test_episodes\)"),
        ({"mixer": "qmix", "mixing_embed_dim": 10**12}, r"networks and .*mixing_embed_dim = 1000000000000\)"),
    ],
)
def test_what_cannot_fit_is_refused_in_one_sentence_and_leaves_no_folder(setting, largest, home):
    amount = r"[\d.e+]+ [GTPE]iB"
    said = rf"the run needs at least {amount} of memory, {amount} of it for {largest}; this machine has {amount}"
    with pytest.raises(ConfigError, match=f"^{said}$"):
        train(build_config(TINY | setting), progress=False)
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    "method", [name for name in METHODS if name != "hyper"]
)  # what makes its weights is not counted
@pytest.mark.parametrize("mixer", ["vdn", "qmix"])
def test_the_estimate_of_parameters_is_close_and_not_above_what_there_is(method, mixer, spec):
    config = build_config({"method": method, "mixer": mixer})
    learner = build_learner(config, spec)
    there = sum(p.numel() for m in (learner.agent, learner.mixer) for p in m.parameters() if p.requires_grad)
    assert 0.89 * there < n_parameters(config, spec) <= there


def test_the_estimate_of_the_buffer_is_exact(spec, monkeypatch):
    config = build_config({"buffer_size": 1000, "mixer": "qmix", "hidden_dim": 4, "n_envs": 1, "test_episodes": 1})
    buffer = ReplayBuffer(spec, 1000, with_state=True)
    size = sum(value.nbytes for value in vars(buffer.episodes).values())
    monkeypatch.setattr(checks, "device_memory", lambda device: 1)
    with pytest.raises(ConfigError, match=re.escape(f"{checks._amount(size)} of it for buffer_size = 1000 episodes")):
        check_memory(config, spec)


def test_a_buffer_that_is_never_filled_needs_only_what_is_written(spec, monkeypatch):
    monkeypatch.setattr(checks, "device_memory", lambda device: 100 * 2**20)
    large = build_config({"buffer_size": 30_000, "t_max": 1000})  # 107 MiB, of which 72 episodes are written
    check_memory(large, spec)
    with pytest.raises(ConfigError, match="buffer_size = 30000"):
        check_memory(build_config({"buffer_size": 30_000, "t_max": 10**7}), spec)
    with pytest.raises(ConfigError, match="buffer_size = 60000"):  # one array alone is larger than the machine
        check_memory(build_config({"buffer_size": 60_000, "t_max": 1000}), spec)
