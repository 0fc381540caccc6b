"""`k24lab bench train`: what a learner update and a training loop cost, as ratios in one interleaved run."""

import itertools
import os
import platform
import statistics
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from k24lab.analysis.style import save_table
from k24lab.bench.timing import cpu_timer, interleaved, median_ratio, show
from k24lab.envs.base import EnvSpec
from k24lab.lab.config import build_config
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


def spec_of(shape: Shape) -> EnvSpec:
    """What a learner knows of an environment of this shape."""
    n, o, a, _, t = shape
    return EnvSpec(n_envs=32, n_agents=n, obs_dims=(o,) * n, n_actions=(a,) * n, state_dim=n * o, episode_limit=t)


def random_batch(spec: EnvSpec, n_episodes: int, device: str = "cpu", with_state: bool = False) -> EpisodeBatch:
    """Full-length episodes of random numbers."""
    batch = empty_batch(spec, n_episodes, with_state, device=device)
    batch.obs.normal_()
    batch.state.normal_()
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
    learners, batch = learners_of(shape, variants)
    calls = {name: partial(learner.update, batch, t_env=1000) for name, learner in learners.items()}
    times = interleaved(calls, rounds, partial(cpu_timer, repeats=1))
    rows = []
    for name, learner in learners.items():
        ratio = median_ratio(times[name], times[BASELINE])
        row = {"variant": name, "ms": statistics.median(times[name]) / 1e3, "ratio": ratio}
        rows.append(row | {"peak_mb": peak_bytes(learner, batch) / 1e6} | part_shares(learner, batch))
    return pd.DataFrame(rows)


def learners_of(
    shape: Shape, variants: Iterable[str], device: str = "cpu"
) -> tuple[dict[str, K24QLearner], EpisodeBatch]:
    """A learner of every variant, and a batch that they can learn from."""
    spec, settings = spec_of(shape), {"hidden_dim": shape[3], "device": device}
    learners = {v: build_learner(build_config(settings | VARIANTS[v]), spec) for v in variants}
    return learners, random_batch(spec, 32, device)


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


def bench_train(rounds: int = 10) -> Path:
    """Print all measurements and write the table `bench_train.csv`; returns its path."""
    torch.set_num_threads(1)
    keep_memory()
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread")
    tables = {name: measure_updates(shape, rounds) for name, shape in SHAPES.items()}
    for name, table in tables.items():
        show(f"Learner update, {name} (median of {rounds}, interleaved; share of each part)", table)
    teams = measure_teams(rounds)
    show(f"Learner update against the number of agents (median of {rounds}, interleaved)", teams)
    data = pd.concat([*(t.assign(shape=name) for name, t in tables.items()), teams.assign(shape="team sizes")])
    return save_table(data, "speed/bench_train")
