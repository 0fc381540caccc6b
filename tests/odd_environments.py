"""Small odd parallel environments, after what users of PettingZoo and its relatives reported.

Each class is a task `pettingzoo/odd_environments:<class>`; test_odd_environments.py says what must become of it.
"""

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Base(ParallelEnv):
    metadata = {"name": "odd"}  # noqa: RUF012

    def __init__(self, n=3, limit=10, obs_dim=4, n_act=3, **kw):
        self.possible_agents = [f"a{i}" for i in range(n)]
        self.agents = []
        self.max_steps = limit
        self.obs_dim, self.n_act, self.kw = obs_dim, n_act, kw
        self.render_mode = None

    def observation_space(self, agent):
        return spaces.Box(-10, 10, (self.obs_dim,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(self.n_act)

    def see(self, agent):
        return self.rng.normal(size=self.obs_dim).astype(np.float32)

    def info(self, agent):
        return {}

    def pay(self, agent, action):
        return float(action == self.possible_agents.index(agent) % self.n_act)

    def reset(self, seed=None, options=None):
        self.rng = np.random.default_rng(seed)
        self.t = 0
        self.agents = list(self.possible_agents)
        return self._obs(), {a: self.info(a) for a in self.agents}

    def _obs(self):
        return {a: self.see(a) for a in self.agents}

    def over(self, agent):  # terminated, truncated
        return False, self.t >= self.max_steps

    def step(self, actions):
        self.t += 1
        obs = self._obs()
        rew = {a: self.pay(a, actions[a]) for a in self.agents}
        over = {a: self.over(a) for a in self.agents}
        term, trunc = {a: x for a, (x, _) in over.items()}, {a: y for a, (_, y) in over.items()}
        infos = {a: self.info(a) for a in self.agents}
        self.agents = self.leave(term, trunc)
        return obs, rew, term, trunc, infos

    def leave(self, term, trunc):
        return [a for a in self.agents if not (term[a] or trunc[a])]

    def state(self):
        raise NotImplementedError


# 1 masks are all zero once the game is over (as turn-based games that were made parallel give them)
class ZeroMaskAtEnd(Base):
    def observation_space(self, agent):
        return spaces.Dict(
            {"observation": super().observation_space(agent), "action_mask": spaces.Box(0, 1, (self.n_act,), np.int8)}
        )

    def see(self, agent):
        over = self.t >= self.max_steps
        return {
            "observation": super().see(agent),
            "action_mask": np.zeros(self.n_act, np.int8) if over else np.ones(self.n_act, np.int8),
        }

    def over(self, agent):
        return self.t >= self.max_steps, False


# 2 agents that are done stay in env.agents, and are reported terminated each step
class DoneStays(Base):
    def over(self, agent):
        return agent == "a0" and self.t >= 3, self.t >= self.max_steps

    def pay(self, agent, action):
        return 1.0

    def step(self, actions):
        self.log = getattr(self, "log", [])
        self.log.append(sorted(actions))
        actions = {a: actions.get(a, 0) for a in self.agents}
        return super().step(actions)

    def leave(self, term, trunc):
        return [] if all(term[a] or trunc[a] for a in self.agents) else self.agents


# 3 observation of one number where four are declared
class ShortObs(Base):
    def see(self, agent):
        return np.array([self.rng.normal()], np.float32)


# 4 a mask of one number where three are declared
class ShortMask(Base):
    def info(self, agent):
        return {"action_mask": np.array([1], np.int8)}


# 5 the limit is a numpy integer / a float
class NumpyLimit(Base):
    def __init__(self, **kw):
        super().__init__(**kw)
        self.max_steps = np.int64(self.max_steps)


class FloatLimit(Base):
    def __init__(self, **kw):
        super().__init__(**kw)
        self.max_steps = float(self.max_steps)


# 6 agent appears that is not in possible_agents
class Newcomer(Base):
    def step(self, actions):
        obs, rew, term, trunc, infos = super().step(actions)
        if self.agents and self.t >= 2:
            obs["ghost"] = np.zeros(4, np.float32)
            rew["ghost"], term["ghost"], trunc["ghost"], infos["ghost"] = 100.0, False, False, {}
        return obs, rew, term, trunc, infos


# 7 number of agents depends on the seed
class SeedTeam(Base):
    def reset(self, seed=None, options=None):
        super().reset(seed)
        self.agents = self.possible_agents[: 1 + int(self.rng.integers(len(self.possible_agents)))][::-1]
        return self._obs(), {}


class NobodyAtStart(Base):
    """Agents arrive at step 2."""

    def reset(self, seed=None, options=None):
        super().reset(seed)
        self.agents = []
        return {}, {}

    def step(self, actions):
        if self.t == 0:
            self.t, self.agents = 1, list(self.possible_agents)
            return self._obs(), {}, {}, {}, {}
        return super().step(actions)


class Late(Base):
    """a2 arrives at step 3."""

    def reset(self, seed=None, options=None):
        super().reset(seed)
        self.agents = ["a1", "a0"]
        return self._obs(), {a: {} for a in self.agents}

    def step(self, actions):
        out = super().step(actions)
        if self.t == 3:
            self.agents = [*self.agents, "a2"]
            out[0]["a2"] = self.see("a2")
        return out


# 8 spaces
class MultiDiscreteAct(Base):
    def action_space(self, agent):
        return spaces.MultiDiscrete([2, 3])


class BoxAct(Base):
    def action_space(self, agent):
        return spaces.Box(-1, 1, (2,), np.float32)


class DictObs(Base):
    def observation_space(self, agent):
        return spaces.Dict(
            {
                "grid": spaces.Box(0, 255, (2, 2, 3), np.uint8),
                "where": spaces.MultiDiscrete([3, 4]),
                "flag": spaces.MultiBinary(2),
                "n": spaces.Discrete(5, start=-2),
            }
        )

    def see(self, agent):
        return {
            "grid": self.rng.integers(0, 256, (2, 2, 3)).astype(np.uint8),
            "where": np.array([2, 3]),
            "flag": np.array([1, 0], np.int8),
            "n": -2,
        }


class DictObsMask(Base):
    def observation_space(self, agent):
        return spaces.Dict(
            {"obs": spaces.Box(-10, 10, (4,), np.float32), "action_mask": spaces.MultiBinary(self.n_act)}
        )

    def see(self, agent):
        m = np.ones(self.n_act, np.int8)
        m[0] = 0
        return {"obs": super().see(agent), "action_mask": m}


class TextObs(Base):
    def observation_space(self, agent):
        return spaces.Text(10)


class GraphObs(Base):
    def observation_space(self, agent):
        return spaces.Sequence(spaces.Discrete(3))


class EmptyObs(Base):
    def observation_space(self, agent):
        return spaces.Box(-1, 1, (0,), np.float32)

    def see(self, agent):
        return np.zeros(0, np.float32)


class Int8Obs(Base):
    def observation_space(self, agent):
        return spaces.Box(-128, 127, (2, 3), np.int8)

    def see(self, agent):
        return self.rng.integers(-128, 128, (2, 3)).astype(np.int8)


class StartAct(Base):
    def action_space(self, agent):
        return spaces.Discrete(3, start=-1)

    def pay(self, agent, action):
        assert action in (-1, 0, 1), action
        return float(action == -1)


# 9 numbers
class NanLater(Base):
    def see(self, agent):
        return super().see(agent) * (np.nan if self.t == 4 and agent == "a1" else 1)


class Huge(Base):
    def pay(self, agent, action):
        return -1e30 * (1 + action)


class Huge64(Base):
    def pay(self, agent, action):
        return -1e300


class NoneReward(Base):
    def pay(self, agent, action):
        return None


class ArrayReward(Base):
    def pay(self, agent, action):
        return np.array([1.0], np.float32)


# 10 old interfaces
class OldReset(Base):
    def reset(self, seed=None, options=None):
        return super().reset(seed)[0]


class OldStep(Base):
    def step(self, actions):
        obs, rew, term, trunc, infos = super().step(actions)
        return obs, rew, {a: term[a] or trunc[a] for a in term}, infos


class NoSeed(Base):
    def reset(self, options=None):
        return super().reset(None)


class GlobalRng(Base):
    """Ignores its seed."""

    def see(self, agent):
        return np.random.normal(size=self.obs_dim).astype(np.float32)  # noqa: NPY002


class StateNone(Base):
    def state(self):
        return None


class StateShrinks(Base):
    def over(self, agent):
        return agent == "a0" and self.t >= 3, self.t >= self.max_steps

    def state(self):
        return (
            np.concatenate([np.zeros(4, np.float32) for _ in self.agents]) if self.agents else np.zeros(0, np.float32)
        )


class NoObsAtEnd(Base):
    def step(self, actions):
        obs, rew, term, trunc, infos = super().step(actions)
        return {a: o for a, o in obs.items() if a in self.agents}, rew, term, trunc, infos


class Mixed(Base):
    """Sizes differ, some die, order differs."""

    def observation_space(self, agent):
        return spaces.Box(-10, 10, (3 + self.possible_agents.index(agent),), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(2 + self.possible_agents.index(agent))

    def see(self, agent):
        return self.rng.normal(size=3 + self.possible_agents.index(agent)).astype(np.float32)

    def over(self, agent):
        return agent == f"a{self.t - 2}", self.t >= self.max_steps

    def leave(self, term, trunc):
        return super().leave(term, trunc)[::-1]
