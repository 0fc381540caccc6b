"""Battles of SMACv2 with random actions."""

import numpy as np

from k24lab.envs.single_env import Row
from k24lab.envs.smacv2 import SMACv2


def available(row: Row, rng: np.random.Generator, attack: bool = True) -> np.ndarray:
    """A random available action of each agent, an attack where there is one."""
    masks = [mask & (np.arange(len(mask)) >= 6) if attack and mask[6:].any() else mask for mask in row.avail_actions]
    return np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])


def play(env: SMACv2, seed: int, attack: bool = True) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = [env.reset(seed)]
    while not (rows[-1].terminated or rows[-1].truncated):
        rows.append(env.step(available(rows[-1], rng, attack)))
    return rows


def same(first: list[Row], second: list[Row]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for a, b in zip(first, second, strict=True)
        for name in vars(a)
    )
