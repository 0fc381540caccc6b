"""More odd environments: unusual options and ends; what raises, exits, or breaks the parallel API.

Each class is a task `pettingzoo/rude_environments:<class>`; test_odd_environments.py says what must become of it.
"""

import random
import sys

import numpy as np
from gymnasium import spaces
from odd_environments import Base, DictObs, DoneStays


class TupleOption(Base):
    def __init__(self, size=(4, 4), weights=None, **kw):
        super().__init__(**kw)
        assert tuple(size) == size, size


class WithKwargs(Base):
    def __init__(self, **kw):
        super().__init__(n=kw.pop("n_players", 2), **kw)


class EarlyEnd(Base):
    """Episodes of unequal length: each step ends it with probability 0.1."""

    def step(self, actions):
        self.dead = self.rng.random() < 0.1
        return super().step(actions)

    def over(self, agent):
        return self.dead, self.t >= self.max_steps


class DoneOnce(DoneStays):
    """Reported terminated in one step only, and in `agents` ever after."""

    def over(self, agent):
        return agent == "a0" and self.t == 3, self.t >= self.max_steps


class Returns(Base):
    """a0 ends at step 3 and is back in `agents` from step 6 on."""

    def over(self, agent):
        return agent == "a0" and self.t == 3, self.t >= self.max_steps

    def pay(self, agent, action):
        return 1.0

    def step(self, actions):
        out = super().step({agent: actions.get(agent, 0) for agent in self.agents})
        if self.t >= 6 and self.agents and "a0" not in self.agents:
            self.agents = ["a0", *self.agents]
        return out


class Turns(Base):
    """Agents move in turn: the mask of all others is zeros, also in the last observation."""

    def info(self, agent):
        turn = self.t < self.max_steps and self.possible_agents.index(agent) == self.t % 3
        return {"action_mask": np.full(self.n_act, turn, np.int8)}

    def step(self, actions):
        assert set(actions) == set(self.agents), actions
        assert all(a == 0 for agent, a in actions.items() if self.possible_agents.index(agent) != self.t % 3), actions
        return super().step(actions)


class NobodyMoves(Base):
    """From step 4 on no agent has an action, and the episode goes on."""

    def info(self, agent):
        return {"action_mask": np.full(self.n_act, self.t < 4, np.int8)}


class LogitMask(Base):
    """The mask is what is added to logits: 0 for allowed."""

    def info(self, agent):
        return {"action_mask": np.array([0.0, -np.inf, 0.0])}


class FlatBox(Base):
    """One axis where two are declared."""

    def observation_space(self, agent):
        return spaces.Box(-10, 10, (2, 3), np.float32)

    def see(self, agent):
        return np.zeros(6, np.float32)


class BelowDiscrete(Base):
    def observation_space(self, agent):
        return spaces.Discrete(5)

    def see(self, agent):
        return -1 if self.t == 2 and agent == "a1" else 4


class AboveMultiDiscrete(Base):
    def observation_space(self, agent):
        return spaces.MultiDiscrete([3, 4])

    def see(self, agent):
        return np.array([2, 4])


class WordsObs(Base):
    def see(self, agent):
        return np.array(["a", "b", "c", "d"])


class LostPart(DictObs):
    def see(self, agent):
        seen = super().see(agent)
        del seen["where"]
        return seen


class AllReward(Base):
    """RLlib's key."""

    def step(self, actions):
        obs, rew, term, trunc, infos = super().step(actions)
        return obs, rew | {"__all__": 800.0}, term, trunc, infos


class ForgetsRewards(Base):
    """Gives a1 a reward in its first step alone."""

    def step(self, actions):
        obs, rew, *rest = super().step(actions)
        return obs, {agent: r for agent, r in rew.items() if agent != "a1" or self.t == 1}, *rest


class AllDone(Base):
    def step(self, actions):
        obs, rew, term, trunc, infos = super().step(actions)
        return obs, rew, term | {"__all__": False}, trunc, infos


class ScalarRewards(Base):
    def step(self, actions):
        obs, _, *rest = super().step(actions)
        return obs, 1.0, *rest


class ArrayRewards(Base):
    def step(self, actions):
        obs, _, *rest = super().step(actions)
        return obs, np.ones(3, np.float32), *rest


class WordFlag(Base):
    def over(self, agent):
        return "no", self.t >= self.max_steps


class NoInfos(Base):
    def step(self, actions):
        return *super().step(actions)[:4], None


class NoInfosAtReset(Base):
    def reset(self, seed=None, options=None):
        return super().reset(seed)[0], None


class Exits(Base):
    def step(self, actions):
        if self.t == 3:
            sys.exit(0)
        return super().step(actions)


class ExitsAtReset(Base):
    def reset(self, seed=None, options=None):
        sys.exit(0)


class ExitsWhenBuilt(Base):
    def __init__(self, **kw):
        sys.exit(0)


class Stops(Base):
    """What a coroutine or another library's control flow raises is no Exception either."""

    def step(self, actions):
        raise GeneratorExit("enough")


class FailsWhenBuilt(Base):
    def __init__(self, **kw):
        raise RuntimeError("no display")


class FailsAtClose(Base):
    def close(self):
        raise RuntimeError("the window is gone")


class ExitsAtClose(Base):
    def close(self):
        sys.exit(0)


class FailsTwice(Exits):
    """In a step, and then when it is closed."""

    def close(self):
        raise RuntimeError("the window is gone")


class StateFails(Base):
    def state(self):
        raise ValueError("no map")


class StateFailsLater(Base):
    def state(self):
        if self.t == 2:
            raise ValueError("no map")
        return np.zeros(3, np.float32)


class Growing(Base):
    """One agent more in each episode, in `agents` alone."""

    def reset(self, seed=None, options=None):
        super().reset(seed)
        self.episodes = getattr(self, "episodes", 0) + 1
        if self.episodes > 2:
            self.agents = [*self.agents, f"a{len(self.agents)}"]
        return {a: np.zeros(4, np.float32) for a in self.agents}, {}


class GrowingTeam(Base):
    """The same in `possible_agents`."""

    def reset(self, seed=None, options=None):
        if hasattr(self, "rng"):
            self.possible_agents = [*self.possible_agents, f"a{len(self.possible_agents)}"]
        return super().reset(seed)


class SameNames(Base):
    def __init__(self, **kw):
        super().__init__(**kw)
        self.possible_agents = ["a0", "a0"]


class BlindAgent(Base):
    """One agent sees nothing, the others do."""

    def observation_space(self, agent):
        return spaces.Box(-10, 10, (0 if agent == "a0" else 4,), np.float32)

    def see(self, agent):
        return super().see(agent)[: 0 if agent == "a0" else 4]


class SmallSeeds(Base):
    """A generator in C that takes signed 32-bit integers."""

    def reset(self, seed=None, options=None):
        if seed >= 2**31:
            raise OverflowError("Python int too large to convert to C int")
        return super().reset(seed)


class HiddenLimit(Base):
    """Its limit is an option that it keeps to itself."""

    def __init__(self, max_cycles=None, **kw):
        super().__init__(**kw)
        self._limit = max_cycles or 10
        del self.max_steps

    def over(self, agent):
        return False, self.t >= self._limit


class DefaultLimit(HiddenLimit):
    def __init__(self, max_cycles=10):
        super().__init__(max_cycles)


class HalfLimit(Base):
    def __init__(self, **kw):
        super().__init__(**kw)
        self.max_steps = 2.5


class SharedEntries(Base):
    """PettingZoo allows entries for all in observations and infos."""

    def _obs(self):
        return super()._obs() | {"common": np.zeros(3)}

    def reset(self, seed=None, options=None):
        obs, infos = super().reset(seed)
        return obs, infos | {"common": {"t": 0}}


class RandomSteps(Base):
    """Begins as its seed says, and goes on as it likes."""

    def pay(self, agent, action):
        return random.random()


class OutOfBounds(Base):
    def see(self, agent):
        return np.full(4, 11.0 if self.t == 5 else 0.0, np.float32)
