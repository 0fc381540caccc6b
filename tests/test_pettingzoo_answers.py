"""What the adapter of parallel environments makes of unusual dictionaries, flags, rewards and spaces."""

import re
from collections import UserDict
from pathlib import Path
from types import MappingProxyType

import numpy as np
import odd_environments
import pytest
from gymnasium import spaces

from k24lab.envs.pettingzoo import PettingZooEnv
from k24lab.envs.task_doctor import examine
from k24lab.errors import ConfigError, RunError

STAY = np.zeros(3, np.int64)


def played(env, seed: int = 0) -> list:
    """All rows of an episode in which everyone takes the first action."""
    single = PettingZooEnv(env)
    rows = [single.reset(seed)]
    while not (rows[-1].terminated or rows[-1].truncated):
        rows.append(single.step(STAY))
    return rows


class Consumes(odd_environments.Base):
    """Takes the actions out of the dictionary that it is given."""

    def step(self, actions):
        return super().step({agent: actions.pop(agent) for agent in list(actions)})


def test_an_environment_that_consumes_the_actions_is_truncated_all_the_same():
    last = played(Consumes())[-1]
    assert last.truncated and not last.terminated


class FlagsAll(odd_environments.Late):
    """Says of each possible agent whether it is not there: a2, which arrives at step 3, is flagged before."""

    def step(self, actions):
        obs, rewards, terminated, truncated, infos = super().step(actions)
        flags = {agent: agent not in self.agents for agent in self.possible_agents}
        if self.kw["flag"] == "terminated":
            return obs, rewards, terminated | flags, truncated, infos
        return obs, rewards, terminated, truncated | flags, infos


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_flags_of_an_agent_that_has_yet_to_arrive_mean_nothing(flag):
    rows = played(FlagsAll(flag=flag))
    assert [row.alive.tolist() for row in rows] == [[True, True, False]] * 3 + [[True] * 3] * 8
    assert rows[-1].terminated == (flag == "terminated")


class Pays(odd_environments.Base):
    """Gives everyone what it was built with."""

    def pay(self, agent, action):
        return self.kw["reward"]


@pytest.mark.parametrize(
    "reward, total",
    [(np.int8(100), 3000), (np.uint8(200), 6000), (np.float16(30000), 900_000), (np.float32(0.5), 15), (True, 30)],
    ids=repr,
)
def test_rewards_of_small_types_do_not_overflow_in_their_sum(reward, total):
    assert sum(row.reward for row in played(Pays(reward=reward))) == total


@pytest.mark.parametrize("kind", [float, np.float64])
def test_rewards_of_64_bits_are_summed_in_their_order(kind):
    given = dict(zip(["a0", "a1", "a2"], map(kind, (0.1, 0.2, 0.3)), strict=True))

    class Each(odd_environments.Base):
        def pay(self, agent, action):
            return given[agent]

    assert played(Each())[1].reward == float(sum(given.values()))


@pytest.mark.parametrize(
    "reward, said",
    [
        (10**400, r"is int 10+\.\.\.0+"),
        (float("nan"), r"is float nan"),
        (np.float32("inf"), r"is float32 .*inf.*"),
        ("1", r"is str '1'"),
    ],
    ids=["400 digits", "nan", "inf", "a word"],
)
def test_a_reward_that_is_no_number_is_told_with_its_agent_step_and_value(reward, said):
    with pytest.raises(
        RunError, match=rf"^reward of agent 'a0' at step 1 {said} \(allowed: one finite number in float32\)$"
    ):
        played(Pays(reward=reward))


@pytest.mark.parametrize("kind", [dict, UserDict, MappingProxyType])
def test_masks_are_read_from_any_mapping(kind):
    class Masked(odd_environments.Base):
        def info(self, agent):
            return kind({"action_mask": np.array([1, 0, 1], np.int8)})

    for row in played(Masked()):
        assert row.avail_actions.tolist() == [[True, False, True]] * 3


class Changes(odd_environments.Base):
    """One of its spaces is another one from its reset number `after` on; None of the two is replaced, it is changed."""

    def __init__(self, after=1, what="start", **kw):
        super().__init__(**kw)
        self.after, self.what, self.resets = after, what, 0
        self.actions, self.seen = spaces.Discrete(3), spaces.Discrete(3)

    def action_space(self, agent):
        return self.actions

    def observation_space(self, agent):
        return self.seen

    def see(self, agent):
        return 0

    def reset(self, seed=None, options=None):
        self.resets += 1
        if self.resets == self.after:
            space = self.seen if self.what == "seen" else self.actions
            space.start, space.n = (10, 3) if self.what == "start" else (0, 5)
        return super().reset(seed)


CHANGES = {  # numbers of the observation, number of actions, first action
    "start": r"spaces must not change: their sizes were \[\(3, 3, 0\), .* are \[\(3, 3, 10\), .* after a reset",
    "more": r"spaces must not change: their sizes were \[\(3, 3, 0\), .* are \[\(3, 5, 0\), .* after a reset",
    "seen": r"spaces must not change: their sizes were \[\(3, 3, 0\), .* are \[\(5, 3, 0\), .* after a reset",
}


@pytest.mark.parametrize("what", CHANGES)
def test_spaces_that_change_are_refused_when_built_at_each_reset_and_by_the_doctor(what, monkeypatch):
    with pytest.raises(ConfigError, match=f"^{CHANGES[what]}$"):
        PettingZooEnv(Changes(1, what))
    with pytest.raises(RunError, match=f"^{CHANGES[what]}$"):
        PettingZooEnv(Changes(2, what)).reset(0)
    env = PettingZooEnv(Changes(3, what))
    env.reset(0)
    with pytest.raises(RunError, match=f"^{CHANGES[what]}$"):
        env.reset(1)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    problems = examine(f"pettingzoo/test_pettingzoo_answers:Changes:after=3,what={what}", 2)[1]
    assert any(re.match(CHANGES[what], problem) for problem in problems)


def test_spaces_that_are_made_anew_with_other_bounds_are_the_same():
    class Given(odd_environments.Base):
        def observation_space(self, agent):
            return spaces.Dict({"x": spaces.Box(-1, self.__dict__.get("t", 1) + 1, (4,)), "y": spaces.MultiBinary(1)})

        def see(self, agent):
            return {"x": np.zeros(4), "y": [1]}

    assert len(played(Given())) == 11
