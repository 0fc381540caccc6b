"""`k24lab bench train`: what a learner update and a training loop cost, as ratios in one interleaved run."""

import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from k24lab.config import Config, build_config
from k24lab.envs.base import EnvSpec
from k24lab.marl.learner import PARTS, K24QLearner, build_learner
from k24lab.marl.replay import EpisodeBatch
from k24lab.train import train

# Agents, observation, actions, hidden size, episode length; batches of 32 episodes.
SHAPES = {
    "3 agents, obs 18, 5 actions, hidden 64, 32 x 25": (3, 18, 5, 64, 25),
    "8 agents, obs 48, 14 actions, hidden 128, 32 x 60": (8, 48, 14, 128, 60),
}
BASELINE = "fups"
VARIANTS: dict[str, dict[str, Any]] = {
    "fups": {"method": "fups"},
    "nops": {"method": "nops"},
    "k24, dense GRU": {"method": "k24", "mask_rnn": False},
    "k24, masked GRU": {"method": "k24", "mask_rnn": True},
    "k24-alpha, masked GRU": {"method": "k24-alpha", "mask_rnn": True},
    "random24, masked GRU": {"method": "random24", "mask_rnn": True},
}
LOOPS: dict[str, dict[str, Any]] = {
    "rolenav, 1 update per 32 episodes": {
        "task": "rolenav",
        "t_max": 64_000,
        "updates_per_rollout": 1,
        "epsilon_anneal_steps": 20_000,
    },
    "mpe2/simple_spread, QMIX, 1 update per episode": {
        "task": "mpe2/simple_spread",
        "t_max": 8_000,
        "mixer": "qmix",
        "n_envs": 8,
        "updates_per_rollout": 8,
    },
}
NO_EXTRAS = {"test_interval": 10**9, "checkpoint_interval": 10**9, "snapshot_interval": 10**9, "test_episodes": 1}


def random_batch(spec: EnvSpec, n_episodes: int) -> EpisodeBatch:
    """Full-length episodes of random numbers."""
    b, t, n, a = n_episodes, spec.episode_limit, spec.n_agents, spec.action_dim
    return EpisodeBatch(
        obs=torch.randn(b, t + 1, n, spec.obs_dim),
        state=torch.zeros(b, t + 1, 0),
        avail_actions=torch.ones(b, t + 1, n, a, dtype=torch.bool),
        alive=torch.ones(b, t + 1, n, dtype=torch.bool),
        actions=torch.randint(a, (b, t, n)),
        reward=torch.randn(b, t),
        terminated=torch.zeros(b, t, dtype=torch.bool),
        filled=torch.ones(b, t, dtype=torch.bool),
        unit_type=torch.zeros(b, n, dtype=torch.int64),
        won=torch.zeros(b, dtype=torch.bool),
    )


def measure_updates(shape: tuple[int, int, int, int, int], rounds: int) -> pd.DataFrame:
    """Milliseconds of one learner update of every variant, in turn `rounds` times; and the share of its parts."""
    n, o, a, h, t = shape
    spec = EnvSpec(n_envs=32, n_agents=n, obs_dims=(o,) * n, n_actions=(a,) * n, state_dim=n * o, episode_limit=t)
    batch = random_batch(spec, 32)
    learners = {name: build_learner(build_config({"hidden_dim": h, **kw}), spec) for name, kw in VARIANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(rounds + 2):  # the first two warm up
        for name, learner in learners.items():
            start = time.perf_counter()
            learner.update(batch, t_env=1000)
            times[name].append(1e3 * (time.perf_counter() - start))
    times = {name: values[2:] for name, values in times.items()}
    rows = []
    for name, learner in learners.items():
        ratios = [a / b for a, b in zip(times[name], times[BASELINE], strict=True)]
        row = {"variant": name, "ms": statistics.median(times[name]), "over_fups": statistics.median(ratios)}
        rows.append(row | part_shares(learner, batch))
    return pd.DataFrame(rows)


def part_shares(learner: K24QLearner, batch: EpisodeBatch) -> dict[str, float]:
    """Share of an update's time that each part takes (under the profiler, which slows small parts most)."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints a line at each start and stop
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(2):
            learner.update(batch, t_env=1000)
    total = {event.key: event.cpu_time_total for event in profiler.key_averages() if event.key in PARTS}
    whole = sum(total.values())
    return {part: total.get(part, 0.0) / whole for part in PARTS}


def measure_loop(params: dict, methods: tuple[str, ...] = ("fups", "k24")) -> pd.DataFrame:
    """Env steps per second of a short training run, from start to finish, without evaluation."""
    rows = []
    for method in methods:
        config: Config = build_config(NO_EXTRAS | params | {"method": method})
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            train(config, folder=Path(folder) / "run", progress=False)
            rows.append({"method": method, "env_steps_per_s": config.t_max / (time.perf_counter() - start)})
    return pd.DataFrame(rows)


def bench_train(rounds: int = 10, loops: bool = True) -> None:
    """Print all measurements."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread")
    with pd.option_context("display.width", 200, "display.max_columns", None, "display.float_format", "{:.2f}".format):
        for name, shape in SHAPES.items():
            print(f"\nLearner update, {name} (median of {rounds}, interleaved; share of each part):")
            print(measure_updates(shape, rounds).to_string(index=False))
        for name, params in LOOPS.items() if loops else ():
            print(f"\nTraining loop, {name}:")
            print(measure_loop(params).to_string(index=False, float_format="{:.0f}".format))
