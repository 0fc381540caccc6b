"""Returns without learning, as reference lines: random actions, and controllers that know who is who."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from k24lab.envs.base import Step, VecEnv
from k24lab.envs.registry import make_env
from study.protocol import OWN_EXTRA, TASKS
from study.scripted import CONTROLLERS, Controller

EPISODES, SEED = 1000, 0
TABLE = Path(__file__).resolve().parents[1] / "figures" / "references" / "references.csv"


def random_controller(seed: int) -> Controller:
    """Uniformly random available actions."""
    generator = torch.Generator().manual_seed(seed)

    def act(env: VecEnv, now: Step) -> Tensor:
        noise = torch.rand(now.avail_actions.shape, generator=generator)
        return (noise * now.avail_actions).argmax(dim=-1)

    return act


def returns(task: str, make: Callable[[], Controller], n_episodes: int = EPISODES, seed: int = SEED) -> Tensor:
    """Returns of so many episodes, played side by side."""
    env = make_env(TASKS[task]["task"], n_episodes)
    now, act = env.reset(seed), make()
    total = now.reward.clone()
    while not (now.terminated | now.truncated).all():
        now = env.step(act(env, now))
        total += now.reward
    env.close()
    return total


INSTALLED = tuple(task for task in TASKS if task not in OWN_EXTRA)


def reference_table(tasks: Iterable[str] = INSTALLED, n_episodes: int = EPISODES) -> pd.DataFrame:
    """A row for each task and reference: mean return and its standard error over the episodes."""
    rows = []
    for task in tasks:
        makers = {"random": lambda: random_controller(SEED)}
        if task in CONTROLLERS:
            makers["scripted"] = CONTROLLERS[task]
        for name, make in makers.items():
            values = returns(task, make, n_episodes)
            error = float(values.std() / len(values) ** 0.5)
            rows.append({"task": task, "reference": name, "mean": float(values.mean()), "standard_error": error})
    return pd.DataFrame(rows)
