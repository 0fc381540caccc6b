"""The particle environments in batches beside those of mpe2, in the same states."""

import numpy as np
import torch

from k24lab.envs.base import Step
from k24lab.envs.mpe import MpeEnv
from k24lab.envs.registry import make_env
from k24lab.envs.vector_env import SerialVector

N_ENVS = 4
FIELDS = ("obs", "state", "reward", "terminated", "truncated", "avail_actions")


class Pair:
    """A task of `mpe` and the same one of mpe2, which is put into its state and plays its scripted agents."""

    def __init__(self, task: str, n_envs: int = N_ENVS):
        self.ours, self.theirs = make_env(f"mpe/{task}", n_envs), make_env(f"mpe2/{task}", n_envs)
        assert isinstance(self.ours, MpeEnv) and isinstance(self.theirs, SerialVector)
        self.task, self.worlds = task, [env.env.world for env in self.theirs.envs]
        if "prey=random" in task:
            for e, env in enumerate(self.theirs.envs):
                env.env._script = lambda world, rng, e=e: self.scripted(e)

    def scripted(self, e: int) -> dict[str, int]:
        """What our random prey does next in environment e."""
        prey = [agent.name for agent in self.worlds[e].agents if not agent.adversary]
        return dict(zip(prey, self.ours._prey_moves[self.ours._t, e].tolist(), strict=True))

    def reset(self, seed: int, scale: float = 1.0, places=None) -> tuple[Step, Step]:
        """Both at the start of an episode, with distances times `scale`, then with agents at `places(world)` [I, 2].

        The first step of mpe2 knows neither.
        """
        self.ours.reset(seed)
        theirs = self.theirs.reset(seed)
        for world in self.worlds:
            for body in world.entities:
                body.state.p_pos = body.state.p_pos * scale
            if places is not None:
                for agent, place in zip(world.agents, places(world), strict=True):
                    agent.state.p_pos = place
        if "simple_line" in self.task:
            for scenario in (env.env._env.scenario for env in self.theirs.envs):
                scenario._expected_positions = [scale * place for place in scenario._expected_positions]
        positions = [[body.state.p_pos for body in world.entities] for world in self.worlds]
        if hasattr(self.ours, "_goal"):
            self.ours._goal = torch.tensor(
                [[w.landmarks.index(a.goal_b) for a in w.agents if a._goal_b] for w in self.worlds]
            )
        if hasattr(self.ours, "_kind"):
            self.ours._kind = self.kinds()
        self.ours._place(torch.from_numpy(np.array(positions)))
        return self.ours._step(self.ours._no_reward()), theirs

    def step(self, actions: torch.Tensor) -> tuple[Step, Step]:
        """One step of both: mpe2 asks for our prey's next move, then it says where treasures appear."""
        theirs = self.theirs.step(actions)
        if hasattr(self.ours, "_kind") and self.ours._t < self.ours.spec.episode_limit:
            places = [[body.state.p_pos for body in world.landmarks] for world in self.worlds]
            self.ours._next_places[self.ours._t + 1] = torch.from_numpy(np.array(places))
            self.ours._next_kinds[self.ours._t + 1] = self.kinds()
        return self.ours.step(actions), theirs

    def kinds(self) -> torch.Tensor:
        """Of mpe2's treasures."""
        return torch.tensor([[body.type for body in world.landmarks] for world in self.worlds])


def random_actions(step: Step, generator: torch.Generator) -> torch.Tensor:
    """Available ones, each as often."""
    return torch.rand(step.avail_actions.shape, generator=generator).mul(step.avail_actions).argmax(dim=2)
