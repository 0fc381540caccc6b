"""What the adapter of parallel environments makes of unusual dictionaries, flags, rewards and spaces."""

import numpy as np
import odd_environments
import pytest

from k24lab.envs.pettingzoo import PettingZooWorld

STAY = np.zeros(3, np.int64)


def played(env, seed: int = 0) -> list:
    """All rows of an episode in which everyone takes the first action."""
    single = PettingZooWorld(env)
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
