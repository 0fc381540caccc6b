"""Controllers written by hand, which know who is who: how far from solved a task is for the methods of the study.

They are simple, not optimal: each sends every agent to a target of its own and brakes in time.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from k24lab.envs.base import Step, VecEnv
from k24lab.envs.mpe import DAMPING, TIME_STEP
from k24lab.envs.mpe2 import MOVES
from k24lab.envs.rolenav import STEP_LENGTH

WAY = TIME_STEP / DAMPING  # until an agent that lets go is at rest, for each unit of speed
Controller = Callable[[VecEnv, Step], Tensor]  # actions [E, N]
MPE_MOVES = torch.from_numpy(MOVES).float()
VMAS_MOVES = torch.tensor([[x, y] for x in (0.0, -1, 1) for y in (0.0, -1, 1)])


def towards(target: Tensor, velocity: Tensor, moves: Tensor, push: float) -> Tensor:
    """The move after which an agent that then lets go comes to rest nearest to its target, in MPE and VMAS.

    Args:
        target: [E, N, 2] from the agent.
        velocity: [E, N, 2].
        moves: [A, 2] directions of the actions.
        push: change of speed by one step of a move.
    """
    rest = ((1 - DAMPING) * velocity[:, :, None] + push * moves) * WAY  # [E, N, A, 2]
    return torch.linalg.vector_norm(target[:, :, None] - rest, dim=-1).argmin(dim=-1)


def assign(offsets: Tensor) -> Tensor:
    """A landmark for each agent [E, N], all different, at the smallest sum of distances; `offsets` is [E, N, L, 2]."""
    distances = torch.linalg.vector_norm(offsets, dim=-1).numpy()
    return torch.tensor(np.stack([linear_sum_assignment(each)[1] for each in distances]))


class OneTarget:
    """Every agent goes to the landmark that it was assigned at the start of the episode.

    Args:
        first: where the relative positions of landmarks begin in an observation.
        width: numbers of each landmark in an observation.
        velocity: where the velocity begins.
        moves: as of `towards`.
        push: as of `towards`.
        own: agent i has landmark i; otherwise the nearest assignment.
        sign: -1 where observations have agent minus landmark.
    """

    def __init__(self, first: int, width: int, velocity: int, moves: Tensor, push: float, own: bool, sign: float = 1.0):
        self.first, self.width, self.velocity = first, width, velocity
        self.moves, self.push, self.own, self.sign = moves, push, own, sign
        self.targets: Tensor | None = None

    def __call__(self, env: VecEnv, now: Step) -> Tensor:
        """Actions for one step."""
        n = env.spec.n_agents
        end = self.first + n * self.width
        offsets = self.sign * now.obs[:, :, self.first : end].unflatten(2, (n, self.width))[..., :2]
        if self.targets is None:
            self.targets = torch.arange(n).expand(len(offsets), -1) if self.own else assign(offsets)
        target = offsets.gather(2, self.targets[:, :, None, None].expand(-1, -1, 1, 2)).squeeze(2)
        velocity = now.obs[:, :, self.velocity : self.velocity + 2]
        return towards(target, velocity, self.moves, self.push)


class RoleNavPlan:
    """Reaches the point nearest to the goal on the grid of steps, which a walk into a wall may shift.

    For each axis there are three grids: through the agent, and through either wall. The plan takes the two whose
    steps fit into the episode and whose end is nearest to the goal.
    """

    def __init__(self) -> None:
        self.plan: Tensor | None = None
        self.t = 0

    def __call__(self, env: VecEnv, now: Step) -> Tensor:
        """Actions for one step."""
        if self.plan is None:
            n, limit = env.spec.n_agents, env.spec.episode_limit
            obs = now.obs.numpy().astype(float)
            plans = [[_plan(row[i, :2], row[i, :2] + row[i, 2 + 2 * i :][:2], limit) for i in range(n)] for row in obs]
            self.plan = torch.tensor(plans)  # [E, N, T]
        self.t += 1
        return self.plan[:, :, self.t - 1]


def _plan(position: np.ndarray, goal: np.ndarray, limit: int) -> list[int]:
    each = [_walks(float(position[axis]), float(goal[axis])) for axis in (0, 1)]
    pairs = [(x, y) for x in each[0] for y in each[1] if len(x[1]) + len(y[1]) <= limit]
    (_, xs), (_, ys) = min(pairs, key=lambda pair: pair[0][0] ** 2 + pair[1][0] ** 2)
    moves = [1 if step > 0 else 2 for step in xs] + [3 if step > 0 else 4 for step in ys]
    return moves + [0] * (limit - len(moves))


def _walks(start: float, goal: float) -> list[tuple[float, list[int]]]:
    """Distances to the goal that can be left along one axis, with the steps (+1 or -1) of each walk."""
    walks: list[tuple[float, list[int]]] = [(abs(goal - start), [])]
    for wall in (None, 1.0, -1.0):
        x, steps = start, []
        if wall is not None:
            steps = [int(wall)] * int(np.ceil((1 - wall * start) / STEP_LENGTH))
            x = wall
        way = (goal - x) / STEP_LENGTH
        for n in (int(np.floor(abs(way))), int(np.ceil(abs(way)))):
            end = float(np.clip(x + np.sign(way) * n * STEP_LENGTH, -1, 1))
            walks.append((abs(goal - end), steps + [int(np.sign(way))] * n))
    return walks


def chase(env: VecEnv, now: Step) -> Tensor:
    """Predators of simple_tag run to where the prey comes to rest."""
    velocity, prey = now.obs[:, :, :2], now.obs[:, :, 12:14]
    return towards(prey + now.obs[:, :, 14:16] * WAY, velocity, MPE_MOVES, 3.0 * TIME_STEP)


def light_runs(env: VecEnv, now: Step) -> Tensor:
    """The light agent of het_mass, the second one, pushes in a diagonal; the heavy one stands still."""
    actions = torch.zeros(now.obs.shape[:2], dtype=torch.long)
    actions[:, 1] = len(VMAS_MOVES) - 1
    return actions


# Makes the controller of an episode of each task that has one.
CONTROLLERS: Mapping[str, Callable[[], Controller]] = {
    "rolenav3": RoleNavPlan,
    "rolenav8": RoleNavPlan,
    "rolenav16": RoleNavPlan,
    "vmas_navigation": lambda: OneTarget(4, 2, 2, VMAS_MOVES, TIME_STEP, own=True, sign=-1.0),
    "vmas_dispersion": lambda: OneTarget(4, 3, 2, VMAS_MOVES, TIME_STEP, own=False),
    "vmas_het_mass": lambda: light_runs,
    "spread": lambda: OneTarget(4, 2, 0, MPE_MOVES, 5.0 * TIME_STEP, own=False),
    "tag": lambda: chase,
}
