"""Fixtures shared by all tests: one shrunken run, small enough to train in a second."""

import signal
from collections.abc import Callable

import matplotlib.pyplot as plt
import pytest
import torch

from k24lab.envs.base import EnvSpec
from k24lab.lab.config import Config, build_config
from k24lab.marl.learner import K24QLearner
from k24lab.marl.replay import EpisodeBatch
from k24lab.ops.library import use_threads

# In the background of a script SIGINT is ignored, by this process and by all that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = {
    "t_max": 1600,
    "hidden_dim": 16,
    "n_envs": 8,
    "batch_size": 8,
    "updates_per_rollout": 1,
    "buffer_size": 64,
    "test_episodes": 4,
    "log_interval": 200,
    "test_interval": 400,
    "checkpoint_interval": 400,
    "snapshot_interval": 400,
    "reset_trigger": "periodic",
    "reset_interval": 400,
}


@pytest.fixture(autouse=True)
def one_thread():
    """One thread of torch and of the kernels, and the same random numbers in every test."""
    use_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_figures():
    """Each test begins without the figures of another."""
    plt.close("all")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Runs and figures go to a temporary folder, never into the repository."""
    monkeypatch.setenv("K24LAB_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def tiny_config():
    """Make a tiny configuration, with changes: `tiny_config(method="fups")`."""

    def make(**changes) -> Config:
        return build_config(TINY | changes)

    return make


@pytest.fixture
def tiny_spec() -> EnvSpec:
    """Three agents, six numbers observed (no multiple of 4), four actions."""
    return EnvSpec(n_envs=4, n_agents=3, obs_dims=(6,) * 3, n_actions=(4,) * 3, state_dim=5, episode_limit=6)


@pytest.fixture
def make_learner(tiny_config, tiny_spec) -> Callable[..., K24QLearner]:
    """Make a learner for `tiny_spec`, with changes: `make_learner(torch.float64, method="fups")`."""

    def make(dtype=torch.float32, **changes) -> K24QLearner:
        torch.manual_seed(0)
        learner = K24QLearner(tiny_config(**changes), tiny_spec)
        for module in (learner.agent, learner.target_agent, learner.mixer, learner.target_mixer):
            module.to(dtype)
        return learner

    return make


@pytest.fixture
def random_episodes(tiny_spec) -> Callable[..., EpisodeBatch]:
    """Make random episodes of different lengths: `random_episodes(n=5, dtype=torch.float64)`."""

    def make(n: int = 5, dtype: torch.dtype = torch.float32, seed: int = 0, spec: EnvSpec = tiny_spec) -> EpisodeBatch:
        g = torch.Generator().manual_seed(seed)
        t, agents, actions = spec.episode_limit, spec.n_agents, spec.action_dim
        lengths = torch.randint(1, t + 1, (n,), generator=g)
        lengths[0] = t
        avail = torch.rand(n, t + 1, agents, actions, generator=g) < 0.7
        avail[..., -1] = True
        steps = torch.arange(t)
        return EpisodeBatch(
            obs=torch.randn(n, t + 1, agents, spec.obs_dim, generator=g, dtype=dtype),
            state=torch.randn(n, t + 1, spec.state_dim, generator=g, dtype=dtype),
            avail_actions=avail,
            alive=torch.ones(n, t + 1, agents, dtype=torch.bool),
            actions=_available_actions(avail[:, :-1], g),
            reward=torch.randn(n, t, generator=g, dtype=dtype),
            terminated=(steps == lengths.unsqueeze(1) - 1) & (torch.arange(n) % 2 == 1).unsqueeze(1),
            filled=steps < lengths.unsqueeze(1),
            unit_type=torch.randint(max(spec.n_unit_types, 1), (n, agents), generator=g),
            won=torch.zeros(n, dtype=torch.bool),
        )

    return make


def _available_actions(avail: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One available action of each agent at each step."""
    return (torch.rand(avail.shape, generator=generator) * avail).argmax(dim=-1)
