"""Tasks of `mpe` in which agents must tell each other where to go: simple_speaker_listener, simple_reference."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from k24lab.envs.mpe import EXACT, Body, MpeEnv, check_share

N_LANDMARKS = 3


class Told(MpeEnv):
    """The first agents each know the landmark, of three, that another agent must reach."""

    def __init__(
        self,
        agents: Sequence[Body],
        owners: Sequence[int],
        size: float,
        dark: float,
        obs_dims: Sequence[int],
        n_envs: int,
        max_cycles: int,
        device: str,
    ):
        """Build the environments.

        Args:
            agents: all agents.
            owners: for each agent that knows a goal, the agent whose goal it is.
            size: radius of landmarks.
            dark: landmarks have colours of this brightness, and 0.5 more in a channel of their own.
            obs_dims: sizes of the team's observations.
            n_envs: E.
            max_cycles: env steps of an episode.
            device: where it is stepped.
        """
        landmarks = [Body(f"landmark {i}", size=size, collides=False, movable=False) for i in range(N_LANDMARKS)]
        self._owners = tuple(owners)
        super().__init__(agents, landmarks, obs_dims, n_envs, max_cycles, device)
        self._colours = dark + 0.5 * torch.eye(N_LANDMARKS, dtype=EXACT, device=device)
        self._told = torch.tensor(self._owners, device=device)

    def _start(self, generator: torch.Generator) -> Float[Tensor, "E K 2"]:
        self._goal = torch.randint(N_LANDMARKS, (self.spec.n_envs, len(self._owners)), generator=generator)
        self._goal = self._goal.to(self._device)
        return self._uniform(generator, len(self._agents) + N_LANDMARKS, 1.0)

    def _goals(self, e: int) -> dict[int, tuple[int, int]]:
        return {i: (owner, int(self._goal[e, i])) for i, owner in enumerate(self._owners)}

    def _missing(self) -> Float[Tensor, "E G"]:
        """Distances of agents to their goals."""
        to_marks = self._distance[:, self._told, len(self._agents) :]
        return to_marks.gather(2, self._goal[..., None])[..., 0]


class SimpleSpeakerListener(Told):
    """A speaker that cannot move tells a listener by one of three words to which of three landmarks it must go.

    The speaker observes the colour of the goal; the listener its velocity, relative positions of landmarks, and the
    word. Reward of both: minus the squared distance of the listener to its goal.
    """

    def __init__(self, n_envs: int, max_cycles: int = 25, device: str = "cpu"):
        super().__init__(
            [
                Body("speaker_0", size=0.075, collides=False, movable=False, n_words=3),
                Body("listener_0", size=0.075, collides=False),
            ],
            [1],
            0.04,
            0.15,
            [3, 2 + 2 * N_LANDMARKS + 3],
            n_envs,
            max_cycles,
            device,
        )

    def _observe(self) -> list[Float[Tensor, "E n O"]]:
        landmarks = self._seen(self._relative, self._to_marks)
        listener = torch.cat([self._velocity[:, 1:], landmarks[:, 1:], self._words[:, :1]], dim=2)
        return [self._colours[self._goal], listener]

    def _reward(self) -> Float[Tensor, " E"]:
        return -2 * self._missing()[:, 0] ** 2


class SimpleReference(Told):
    """Two agents tell each other by one of ten words to which of three landmarks the other one must go.

    An agent observes its velocity, relative positions of landmarks, the colour of the other's goal, and the other's
    word. Reward of an agent: minus the distance of the other one to its goal, mixed with the mean of both by
    `local_ratio`, which leaves the team's reward as it is.
    """

    def __init__(self, n_envs: int, local_ratio: float = 0.5, max_cycles: int = 25, device: str = "cpu"):
        check_share("simple_reference", local_ratio=local_ratio)
        super().__init__(
            [Body(f"agent_{i}", collides=False, n_words=10) for i in range(2)],
            [1, 0],
            0.05,
            0.25,
            [2 + 2 * N_LANDMARKS + 3 + 10] * 2,
            n_envs,
            max_cycles,
            device,
        )

    def _observe(self) -> list[Float[Tensor, "E n O"]]:
        landmarks, colours = self._seen(self._relative, self._to_marks), self._colours[self._goal]
        return [torch.cat([self._velocity, landmarks, colours, self._words.flip(1)], dim=2)]

    def _reward(self) -> Float[Tensor, " E"]:
        return -self._missing().sum(dim=1)
