"""AEC environments of PettingZoo: agents that act one after another, made parallel by PettingZoo's own converters."""

import sys
from typing import ClassVar

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from pettingzoo import AECEnv
from pettingzoo.utils import AgentSelector

from k24lab.envs.registry import make_env
from k24lab.envs.task_doctor import CANCEL, examine
from k24lab.errors import ConfigError, RunError
from k24lab.lab.config import build_config
from k24lab.lab.train import train


class Relay(AECEnv):
    """Two agents count up in turn: whoever moves adds its action, and both are paid what was added.

    Every agent sees the count, and names itself the one who may move in no mask.
    """

    metadata: ClassVar = {"name": "relay", "is_parallelizable": False}

    def __init__(self, rounds=3, opponents=False, render_mode=None):
        super().__init__()
        self.possible_agents, self.max_cycles, self.opponents = ["a", "b"], rounds, opponents
        self.render_mode = render_mode

    def observation_space(self, agent):
        return Box(0.0, 100.0, (1,), np.float32)

    def action_space(self, agent):
        return Discrete(3)

    def reset(self, seed=None, options=None):
        self.agents, self.count, self.moves = list(self.possible_agents), 0, []
        self.order = AgentSelector(self.agents)
        self.agent_selection = self.order.next()
        self.rewards, self._cumulative_rewards = (dict.fromkeys(self.agents, 0) for _ in range(2))
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in range(2))
        self.infos = {agent: {} for agent in self.agents}

    def observe(self, agent):
        return np.float32([self.count])

    def step(self, action):
        if self.terminations[self.agent_selection]:
            self._was_dead_step(action)
            return
        self.moves.append((self.agent_selection, action))
        self.count += action
        sign = {agent: 1 if agent == self.agent_selection or not self.opponents else -1 for agent in self.agents}
        self.rewards = {agent: sign[agent] * action for agent in self.agents}
        over = len(self.moves) == 2 * self.max_cycles
        self.terminations = {agent: over or self.dies(agent) for agent in self.agents}
        self.agent_selection = self.order.next()

    def dies(self, agent):
        return False


class Together(Relay):
    """Agents move at the same time, as the metadata say, but the second dies before it has moved."""

    metadata: ClassVar = {"name": "together", "is_parallelizable": True}

    def dies(self, agent):
        return agent == "b" and len(self.moves) == 3


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    module = type(sys)("k24_aec")
    module.env, module.Together = Relay, Together
    monkeypatch.setitem(sys.modules, "k24_aec", module)


def test_a_module_with_env_alone_is_a_game_of_turns_whose_rounds_are_moves_of_all():
    env = make_env("pettingzoo/k24_aec:rounds=4", 1)
    game = env.envs[0].env.unwrapped
    step, movers, total = env.reset(0), [], 0.0
    while not bool(step.terminated | step.truncated):
        free = step.avail_actions[0].sum(dim=1)
        movers.append(int(free.argmax()))
        assert sorted(free.tolist()) == [1, 3] and step.avail_actions[0, :, 0].all()
        step = env.step(torch.where(step.avail_actions[..., 2], 2, 0))
        total += float(step.reward)
    assert movers == [0, 1] * 4 and env.spec.episode_limit == 8
    assert game.moves == [("a", 2), ("b", 2)] * 4 and total == 8 * 2 * 2  # a reward for each of the two
    assert bool(step.terminated)


def test_a_limit_that_is_given_counts_moves():
    assert make_env("pettingzoo/k24_aec:episode_limit=5", 1).spec.episode_limit == 5


def test_an_environment_that_is_parallelizable_acts_all_at_once():
    spread, parallel = (make_env(f"pettingzoo/mpe2.simple_spread_v3{end}:max_cycles=4", 2) for end in (".env", ""))
    steps = [spread.reset(3)], [parallel.reset(3)]
    for t in range(4):
        chosen = torch.full((2, 3), t)
        steps[0].append(spread.step(chosen))
        steps[1].append(parallel.step(chosen))
    for one, other in zip(*steps, strict=True):
        assert torch.equal(one.obs, other.obs) and torch.allclose(one.reward, other.reward)
    assert bool(steps[0][-1].truncated.all())


def test_what_the_converter_refuses_is_told():
    env = make_env("pettingzoo/k24_aec:Together", 1)
    env.reset(0)
    env.step(torch.ones(1, 2, dtype=torch.int64))
    with pytest.raises(RunError, match="step 2 raised ValueError: when an agent is dead, the only valid"):
        env.step(torch.ones(1, 2, dtype=torch.int64))


def test_what_names_no_environment_says_what_it_lacks():
    with pytest.raises(ConfigError, match="nor a module with parallel_env or env"):
        make_env("pettingzoo/json.decoder", 1)


def test_the_doctor_says_that_opponents_have_nothing_to_learn_as_a_team():
    assert list(examine("pettingzoo/k24_aec:rounds=2,opponents=True", 2)[1]) == [CANCEL]
    assert not examine("pettingzoo/k24_aec:rounds=2", 2)[1]


def test_a_game_of_turns_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("K24LAB_HOME", str(tmp_path))
    settings = {"task": "pettingzoo/k24_aec", "t_max": 200, "n_envs": 4, "hidden_dim": 16, "batch_size": 4}
    folder = train(build_config(settings | {"test_episodes": 4}), "turns", progress=False)
    assert (folder / "DONE").is_file()


REAL = [
    ("pettingzoo.sisl.pursuit_v5", "max_cycles=6", "pygame", 8),
    ("pettingzoo.butterfly.pistonball_v6", "continuous=False,n_pistons=3,max_cycles=2", "pymunk", 3),
    ("pettingzoo.classic.hanabi_v5", "episode_limit=30", "pyspiel", 2),
    ("pettingzoo.classic.leduc_holdem_v4", "episode_limit=10", "rlcard", 2),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("module", "options", "needs", "n_agents"), REAL)
def test_environments_of_pettingzoo_play_an_episode(module, options, needs, n_agents):
    pytest.importorskip(needs)
    env, generator = make_env(f"pettingzoo/{module}:{options}", 1), torch.Generator().manual_seed(0)
    step = env.reset(0)
    assert env.spec.n_agents == n_agents
    while not bool(step.terminated | step.truncated):
        if "classic" in module:
            assert (step.avail_actions[0].sum(dim=1) > 1).sum() <= 1
        weights = step.avail_actions.flatten(0, 1).float()
        step = env.step(torch.multinomial(weights, 1, generator=generator).view(1, -1))
    env.close()
