"""Learner updates of the package on random episodes, and the dense products that they are made of."""

import torch

from benchmarks.worker import Meter
from k24lab.bench.train import Shape, random_batch, spec_of
from k24lab.lab.config import build_config
from k24lab.marl.learner import build_learner
from k24lab.ops.library import keep_memory

EPISODES = 32


def update(meter: Meter, shape: Shape, **settings: object) -> None:
    """One update after the other of a learner with these settings; torch has one thread."""
    keep_memory()
    spec = spec_of(shape)
    torch.manual_seed(0)
    learner = build_learner(build_config(hidden_dim=shape[3], **settings), spec)
    batch = random_batch(spec, EPISODES, with_state=True)
    while True:
        learner.update(batch, t_env=1000)
        meter()


def products(shape: Shape) -> int:
    """Floating-point operations of an update's dense products in the agent networks.

    Forward in the online and the target network; backward to every weight, and to every layer's inputs but the first.
    """
    n, o, a, h, t = shape
    forward = o * h + 3 * h * h + 3 * h * h + 2 * h * h + h * a
    return 2 * n * EPISODES * (t + 1) * (4 * forward - o * h)


def matrix_products(meter: Meter, shape: Shape, width: int = 1024) -> None:
    """Large square products, counted in updates whose dense products are as much work."""
    x, weight, out = (torch.randn(width, width) for _ in range(3))
    units = 2 * width**3 / products(shape)
    while True:
        torch.mm(x, weight, out=out)
        meter(units)
