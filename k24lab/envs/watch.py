"""What `k24lab doctor --task` finds, and a foreign environment that is watched while it is played."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from k24lab.envs.base import EnvSpec
from k24lab.envs.foreign import ParallelEnv, brief
from k24lab.envs.spaces import NUMBERS, mask_holder

MASK_WORDS = ("avail", "legal", "mask", "valid")  # in the names that others give to an action mask


@dataclass
class Seen:
    """Where something was seen first, and how often."""

    place: str
    times: int = 0


@dataclass
class Findings:
    """What is known of a task after some episodes."""

    spec: EnvSpec
    agents: Sequence[str]
    lengths: list[int] = field(default_factory=list)  # env steps of each episode
    returns: list[float] = field(default_factory=list)
    n_terminated: int = 0
    problems: dict[str, Seen] = field(default_factory=dict)  # what should not be
    notes: dict[str, Seen] = field(default_factory=dict)  # what is allowed, and worth knowing

    def problem(self, text: str, place: str = "") -> None:
        """Something that should not be."""
        self.problems.setdefault(text, Seen(place)).times += 1

    def note(self, text: str, place: str = "") -> None:
        """Something that is allowed."""
        self.notes.setdefault(text, Seen(place)).times += 1


class Watched:
    """A parallel environment that passes on whatever it is asked, and notes what the adapter lets pass."""

    def __init__(self, env: ParallelEnv, found: Findings):
        self._env, self._found = env, found
        self.episode: int | None = None  # which one is played; None: nothing is noted
        self._t = 0
        self._acting: list[Any] = []
        self._dead: dict[Any, int] = {}  # agent -> step at which it was reported dead, or left
        self._came: set[Any] = set()
        self._steps: Counter[Any] = Counter()  # of each agent that was given a mask
        self._unmasked: Counter[Any] = Counter()  # of each agent that was given none
        self._stuck: Counter[Any] = Counter()  # those without any action

    def __getattr__(self, name: str) -> Any:
        """All that is not watched."""
        return getattr(self._env, name)

    def reset(self, seed: int) -> Any:
        """A new episode."""
        answer = self._env.reset(seed=seed)
        self._t, self._dead, self._came = 0, {}, set(self._env.agents)
        self._acting = list(self._env.agents)
        if isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(part, Mapping) for part in answer):
            if not self._acting:
                self._problem("no agent is there after a reset")
            self._look_at_observations(*answer)
        return answer

    def step(self, actions: Mapping[Any, int]) -> Any:
        """One env step."""
        answer = self._env.step(actions)
        self._t += 1
        if isinstance(answer, tuple) and len(answer) == 5 and all(isinstance(part, Mapping) for part in answer):
            obs, rewards, terminated, truncated, infos = answer
            self._look_at_rewards(rewards, {**terminated}, {**truncated})
            self._look_at_agents(terminated, truncated)
            self._look_at_observations(obs, infos)
        return answer

    def summarise(self) -> None:
        """Note what only all steps together say."""
        for agent, n in (+self._stuck).items():  # without zeros
            share = f"{100 * n / self._steps[agent]:.0f} %"
            self._found.note(f"agent {agent!r} had no move in {share} of its steps: it was sent its first action")
        for agent, n_masked in self._steps.items():
            if n := self._unmasked[agent]:
                said = f"agent {agent!r} is given no action_mask in {n} of {n + n_masked} observations"
                self._found.note(f"{said}: every action counts as available there")

    def _look_at_rewards(self, rewards: Mapping, *flags: Mapping) -> None:
        for agent in self._acting:
            for what, values in zip(("reward", "terminated", "truncated"), (rewards, *flags), strict=True):
                if agent not in values:
                    meaning = "0" if what == "reward" else "False"
                    self._note(f"agent {agent!r} acted and was given no {what}: {meaning} is taken for it")
        for agent in self._dead:
            if rewards.get(agent):
                self._note(f"agent {agent!r} is given rewards after its end: they count for the team")

    def _look_at_agents(self, terminated: Mapping, truncated: Mapping) -> None:
        agents = list(self._env.agents)
        for agent, t in self._dead.items():
            if agent in agents:
                said = f"agent {agent!r} is in agents after its end; it stays dead until the next reset"
                self._problem(said, f"it ended at step {t}")
        for agent in self._acting:
            if terminated.get(agent) or truncated.get(agent) or agent not in agents:
                self._dead[agent] = self._t
        for agent in agents:
            if agent not in self._came:
                self._note(f"agent {agent!r} arrives after the reset")
        self._came.update(agents)
        self._acting = [agent for agent in agents if agent not in self._dead]
        limit = self._found.spec.episode_limit
        if self._acting and self._t == limit:
            self._note(f"the environment goes on after {limit} env steps: the limit truncates it from outside")

    def _look_at_observations(self, obs: Mapping, infos: Mapping) -> None:
        possible = self._env.possible_agents
        for agent, seen in obs.items():
            if agent not in possible:
                self._note(f"observations have an entry {agent!r}, which is no agent: nobody reads it")
            elif agent in self._acting:
                self._look_at_space(agent, seen, self._env.observation_space(agent))
        for agent in self._acting:
            holder = mask_holder(obs.get(agent), infos.get(agent))
            if holder is not None:
                self._steps[agent] += 1
                self._stuck[agent] += not np.any(holder["action_mask"])
                continue
            self._unmasked[agent] += 1
            self._look_for_masks(agent, {"observation": obs.get(agent), "info": infos.get(agent)})

    def _look_for_masks(self, agent: Any, parts: Mapping[str, Any]) -> None:
        """Note what looks like a mask of an agent without one, under a name that the adapter does not know."""
        shape = (int(self._env.action_space(agent).n),)
        for part, holder in parts.items():
            for key, value in holder.items() if isinstance(holder, Mapping) else ():
                if any(word in str(key).lower() for word in MASK_WORDS) and _shape(value) == shape:
                    said = f"the {part} of agent {agent!r} has {key!r}, which looks like a mask of its actions"
                    self._note(f"{said}: nobody reads it, the name is 'action_mask'")

    def _look_at_space(self, agent: Any, seen: Any, space: Any) -> None:
        if space.contains(seen):
            return
        array, low, high = np.asarray(seen), getattr(space, "low", None), getattr(space, "high", None)
        text = f"observations of agent {agent!r} are outside of their space"
        if low is None or high is None or array.shape != space.shape or array.dtype.kind not in NUMBERS:
            self._problem(text, f"{brief(seen)}, declared is {' '.join(str(space).split())}")
        elif (bad := ~((array >= low) & (array <= high))).any():
            bounds = f"{low[bad].flat[0]:g} to {high[bad].flat[0]:g}"
            self._problem(text, f"{array[bad].flat[0]:.4g}, declared are {bounds}")
        else:
            self._note(f"observations of agent {agent!r} are {array.dtype}, declared are {space.dtype}")

    def _problem(self, text: str, detail: str = "") -> None:
        if self.episode is not None:
            self._found.problem(text, self._place(detail))

    def _note(self, text: str, detail: str = "") -> None:
        if self.episode is not None:
            self._found.note(text, self._place(detail))

    def _place(self, detail: str) -> str:
        return f"episode {self.episode}, step {self._t}" + (f": {detail}" if detail else "")


def _shape(value: Any) -> tuple[int, ...] | None:
    try:
        return np.shape(value)
    except Exception:  # ragged lists, or what an object's own conversion raises
        return None
