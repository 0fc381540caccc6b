"""A parallel environment that is watched while `k24lab doctor --task` plays it, and what the doctor finds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from k24lab.envs.base import EnvSpec
from k24lab.envs.pettingzoo import PettingZooEnv
from k24lab.envs.pettingzoo_checks import brief
from k24lab.envs.pettingzoo_spaces import mask_holder, short

MASK_WORDS = ("avail", "legal", "mask", "valid")  # in the names that others give to an action mask


@dataclass
class Findings:
    """What is known of a task after some episodes."""

    spec: EnvSpec
    agents: Sequence[str]
    lengths: list[int] = field(default_factory=list)  # env steps of each episode
    returns: list[float] = field(default_factory=list)
    n_terminated: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)  # what should not be -> places where it was seen
    notes: dict[str, list[str]] = field(default_factory=dict)  # the same of what is allowed, and worth knowing

    def problem(self, text: str, place: str = "") -> None:
        """Something that should not be."""
        self.problems.setdefault(text, []).append(place)

    def note(self, text: str, place: str = "") -> None:
        """Something that is allowed."""
        self.notes.setdefault(text, []).append(place)


class Watcher:
    """Stands between an adapter and its environment, passes everything on, and notes what the adapter lets pass."""

    def __init__(self, adapter: PettingZooEnv, found: Findings):
        self._adapter, self._env, self._found = adapter, adapter.env, found
        self.episode: int | None = None  # which one is played; None: nothing is noted
        self._n_steps: Counter[Any] = Counter()  # of each agent
        self._n_masked: Counter[Any] = Counter()  # ... in which it was given a mask
        self._n_stuck: Counter[Any] = Counter()  # ... in which its mask had no action
        adapter.env = self

    def __getattr__(self, name: str) -> Any:
        """All that is not watched."""
        return getattr(self._env, name)

    def reset(self, seed: int) -> Any:
        """A new episode."""
        answer = self._env.reset(seed=seed)
        if not self._env.agents:
            self._problem("no agent is there after a reset")
        if _dictionaries(answer, 2):
            self._look_at_observations(self._env.agents, *answer)
        return answer

    def step(self, actions: Mapping[Any, int]) -> Any:
        """One env step; the adapter has counted it already."""
        acted, dead, t = list(actions), self._adapter.dead, self._adapter.t
        answer = self._env.step(actions)
        if not _dictionaries(answer, 5):
            return answer
        obs, rewards, terminated, truncated, infos = answer
        for what, values in {"reward": rewards, "terminated": terminated, "truncated": truncated}.items():
            for agent in (agent for agent in acted if agent not in values):
                meaning = "0" if what == "reward" else "False"
                self._note(f"agent {agent!r} acted and was given no {what}: {meaning} is taken for it")
        for agent, end in dead.items():
            if rewards.get(agent):
                self._note(f"agent {agent!r} is given rewards after its end: they count for the team")
            if agent in self._env.agents:
                said = f"agent {agent!r} is in agents after its end; it stays dead until the next reset"
                self._problem(said, f"it ended at step {end}")
        ended = {agent for agent in acted if terminated.get(agent) or truncated.get(agent)} | dead.keys()
        left = [agent for agent in self._env.agents if agent not in ended]
        if left and t == self._found.spec.episode_limit:
            self._note(f"the environment goes on after {t} env steps: the limit truncates it from outside")
        self._look_at_observations(left, obs, infos)
        return answer

    def summarise(self) -> None:
        """Note what only all steps together tell."""
        for agent, n_masked in self._n_masked.items():
            if n := self._n_stuck[agent]:
                share = f"{100 * n / n_masked:.0f} %"
                self._found.note(f"agent {agent!r} had no move in {share} of its steps: it was sent its first action")
            if n := self._n_steps[agent] - n_masked:
                said = f"agent {agent!r} is given no action_mask in {n} of {self._n_steps[agent]} observations"
                self._found.note(f"{said}: every action counts as available there")

    def _look_at_observations(self, agents: Iterable[Any], obs: Mapping, infos: Mapping) -> None:
        for agent in agents:
            seen, info = obs.get(agent), infos.get(agent)
            if agent in obs:
                self._look_at_space(agent, seen, self._env.observation_space(agent))
            holder = mask_holder(seen, info)
            self._n_steps[agent] += 1
            if holder is not None:
                self._n_masked[agent] += 1
                self._n_stuck[agent] += not np.any(holder["action_mask"])
            else:
                self._look_for_mask(agent, "observation", seen)
                self._look_for_mask(agent, "info", info)

    def _look_for_mask(self, agent: Any, part: str, holder: Any) -> None:
        """Note what looks like a mask of an agent without one, under a name that the adapter does not know."""
        n_actions = int(self._env.action_space(agent).n)
        for key, value in holder.items() if isinstance(holder, Mapping) else ():
            named = any(word in str(key).lower() for word in MASK_WORDS)
            if named and hasattr(value, "__len__") and len(value) == n_actions:
                said = f"the {part} of agent {agent!r} has {key!r}, which looks like a mask of its actions"
                self._note(f"{said}: nobody reads it, the name is 'action_mask'")

    def _look_at_space(self, agent: Any, seen: Any, space: Any) -> None:
        """Numbers that are out of bounds; another type than declared does no harm."""
        if space.contains(seen):
            return
        text, array = f"observations of agent {agent!r} are outside of their space", np.asarray(seen)
        low, high = getattr(space, "low", None), getattr(space, "high", None)
        if low is None or high is None or array.shape != space.shape:
            self._problem(text, f"{brief(seen)}, declared is {short(space)}")
        elif (bad := ~((array >= low) & (array <= high))).any():
            self._problem(text, f"{array[bad][0]:.4g}, declared are {low[bad][0]:g} to {high[bad][0]:g}")

    def _problem(self, text: str, detail: str = "") -> None:
        if self.episode is not None:
            place = f"episode {self.episode}, step {self._adapter.t}"
            self._found.problem(text, f"{place}: {detail}" if detail else place)

    def _note(self, text: str) -> None:
        if self.episode is not None:
            self._found.note(text, f"episode {self.episode}, step {self._adapter.t}")


def _dictionaries(answer: Any, n: int) -> bool:
    return isinstance(answer, tuple) and len(answer) == n and all(isinstance(part, Mapping) for part in answer)
