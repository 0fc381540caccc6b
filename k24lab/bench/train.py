"""`k24lab bench train`: what a learner update and a training loop cost, as ratios in one interleaved run."""

import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from k24lab.analysis import style
from k24lab.analysis.speedup_plots import training_figure
from k24lab.bench.timing import cpu_timer, interleaved, median_ratio, show
from k24lab.envs.base import EnvSpec
from k24lab.lab.config import build_config
from k24lab.lab.train import train
from k24lab.marl.learner import PARTS, K24QLearner, build_learner
from k24lab.marl.replay import EpisodeBatch, empty_batch
from k24lab.ops.library import keep_memory

Shape = tuple[int, int, int, int, int]  # agents, observation, actions, hidden size, episode length
SHAPES: dict[str, Shape] = {  # of batches of 32 episodes
    "3 agents, obs 18, 5 actions, hidden 64, 32 x 25": (3, 18, 5, 64, 25),
    "8 agents, obs 48, 14 actions, hidden 128, 32 x 60": (8, 48, 14, 128, 60),
}
TEAM_SIZES = (3, 10, 30, 100)  # at the first shape: the cost of an agent must not grow with them
BASELINE = "fups"
VARIANTS: dict[str, dict[str, Any]] = {
    "fups": {"method": "fups"},
    "nops": {"method": "nops"},
    "k24, dense GRU": {"method": "k24", "mask_rnn": False},
    "k24, masked GRU": {"method": "k24", "mask_rnn": True},
    "k24-alpha, masked GRU": {"method": "k24-alpha", "mask_rnn": True},
    "random24, masked GRU": {"method": "random24", "mask_rnn": True},
    "magnitude24, masked GRU": {"method": "magnitude24", "mask_rnn": True},
    "kaleidoscope, dense GRU": {"method": "kaleidoscope"},
}
SPREAD = {"task": "mpe2/simple_spread", "t_max": 8_000, "mixer": "qmix", "n_envs": 8}
ONE_UPDATE = {"t_max": 64_000, "updates_per_rollout": 1}
LOOPS: dict[str, dict[str, Any]] = {
    "rolenav, 1 update per 32 episodes": ONE_UPDATE | {"task": "rolenav", "epsilon_anneal_steps": 20_000},
    "mpe2/simple_spread, QMIX, 1 update per episode": SPREAD | {"updates_per_rollout": 8},
    "mpe2/simple_spread, QMIX, 1 update per 4 episodes": SPREAD | {"updates_per_rollout": 2},
}
SMAX = ONE_UPDATE | {"task": "smax/smacv2_5_units", "t_max": 160_000}
EXTRA_LOOPS: dict[str, tuple[str, dict[str, Any]]] = {  # the package that they need
    "vmas/navigation, 1 update per 32 episodes": ("vmas", ONE_UPDATE | {"task": "vmas/navigation"}),
    "smax/smacv2_5_units, 1 update per 32 episodes": ("jaxmarl", SMAX),
}
NO_EXTRAS = {"test_interval": 10**9, "checkpoint_interval": 10**9, "snapshot_interval": 10**9, "test_episodes": 1}


def random_batch(spec: EnvSpec, n_episodes: int) -> EpisodeBatch:
    """Full-length episodes of random numbers."""
    batch = empty_batch(spec, n_episodes, with_state=False)
    batch.obs.normal_()
    batch.reward.normal_()
    batch.actions.random_(spec.action_dim)
    for always in (batch.avail_actions, batch.alive, batch.filled):
        always.fill_(True)
    return batch


def measure_updates(shape: Shape, rounds: int, variants: Iterable[str] = tuple(VARIANTS)) -> pd.DataFrame:
    """Milliseconds of one learner update of every variant, interleaved; its memory and its parts.

    `ratio` is the median of the rounds' ratios to the baseline, `peak_mb` (1e6 bytes) what the update allocates
    at its peak, and each part has its share of the time.
    """
    n, o, a, h, t = shape
    spec = EnvSpec(n_envs=32, n_agents=n, obs_dims=(o,) * n, n_actions=(a,) * n, state_dim=n * o, episode_limit=t)
    batch = random_batch(spec, 32)
    learners = {v: build_learner(build_config({"hidden_dim": h, **VARIANTS[v]}), spec) for v in variants}
    calls = {name: partial(learner.update, batch, t_env=1000) for name, learner in learners.items()}
    times = interleaved(calls, rounds, partial(cpu_timer, repeats=1))
    rows = []
    for name, learner in learners.items():
        ratio = median_ratio(times[name], times[BASELINE])
        row = {"variant": name, "ms": statistics.median(times[name]) / 1e3, "ratio": ratio}
        rows.append(row | {"peak_mb": peak_bytes(learner, batch) / 1e6} | part_shares(learner, batch))
    return pd.DataFrame(rows)


def measure_teams(rounds: int) -> pd.DataFrame:
    """Milliseconds and memory of an update against the number of agents, at the first shape otherwise."""
    _, o, a, h, t = next(iter(SHAPES.values()))
    variants = (BASELINE, "nops", "k24, dense GRU", "k24, masked GRU")
    tables = [measure_updates((n, o, a, h, t), rounds, variants).assign(n_agents=n) for n in TEAM_SIZES]
    return pd.concat(tables)[["variant", "n_agents", "ms", "ratio", "peak_mb"]]


def peak_bytes(learner: K24QLearner, batch: EpisodeBatch) -> int:
    """Most bytes of tensors that one update holds beyond those before it, from the allocator's own record."""
    learner.optimizer.zero_grad()  # the record knows nothing of what was allocated before it
    events = _profiled(learner, batch, n_updates=1, profile_memory=True).events()
    records = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in records))


def part_shares(learner: K24QLearner, batch: EpisodeBatch) -> dict[str, float]:
    """Share of an update's time that each part takes (under the profiler, which slows small parts most)."""
    nanoseconds = dict.fromkeys(PARTS, 0)
    for event in _profiled(learner, batch, n_updates=2).events():
        if event.name() in PARTS:
            nanoseconds[event.name()] += event.duration_ns()
    whole = sum(nanoseconds.values())
    return {part: time / whole for part, time in nanoseconds.items()}


def _profiled(learner: K24QLearner, batch: EpisodeBatch, n_updates: int, profile_memory: bool = False) -> Any:
    """What torch's profiler recorded of a few updates."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints a line at each start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=profile_memory) as profiler:
        for _ in range(n_updates):
            learner.update(batch, t_env=1000)
    assert profiler.profiler is not None
    return profiler.profiler.kineto_results


def measure_loop(params: dict[str, Any], methods: tuple[str, ...] = ("fups", "k24")) -> pd.DataFrame:
    """Env steps per second of short training runs as a whole, without evaluation."""
    rows = []
    for method in methods:
        config = build_config(NO_EXTRAS | params | {"method": method})
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            train(config, folder=Path(folder) / "run", progress=False)
            rows.append({"method": method, "env_steps_per_s": config.t_max / (time.perf_counter() - start)})
    return pd.DataFrame(rows)


def bench_train(rounds: int = 10, loops: bool = True) -> list[Path]:
    """Print all measurements and write the figure `bench_train`; returns its files."""
    torch.set_num_threads(1)
    keep_memory()
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread")
    tables = {name: measure_updates(shape, rounds) for name, shape in SHAPES.items()}
    for name, table in tables.items():
        show(f"Learner update, {name} (median of {rounds}, interleaved; share of each part)", table)
    teams = measure_teams(rounds)
    show(f"Learner update against the number of agents (median of {rounds}, interleaved)", teams)
    extras = {name: params for name, (package, params) in EXTRA_LOOPS.items() if find_spec(package)}
    for name, params in (LOOPS | extras).items() if loops else ():
        show(f"Training loop, {name}", measure_loop(params))
    with style.paper_style():
        fig = training_figure(tables, teams, PARTS)
        data = pd.concat([*(t.assign(shape=name) for name, t in tables.items()), teams.assign(shape="team sizes")])
        return list(style.save_figure(fig, "speed/bench_train", data).values())
