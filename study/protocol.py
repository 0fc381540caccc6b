"""What the study fixes before its runs: tasks and their settings, search spaces, budgets and seeds.

docs/protocol.md explains the choices; its tables are checked against this file by tests/test_study.py.
"""

from typing import Any

from k24lab.lab.config import Config, build_config
from k24lab.methods import METHODS

# The methods of the study. One that is added to the package later is not part of it.
STUDIED = (
    "k24 k24-alpha k24-literal k24-gains random24 magnitude24 fups fups-id nops multih "
    "kaleidoscope kaleidoscope-id kaleidoscope-half hyper gains gains24"
).split()
LEARNING_RATES = (1e-3, 3e-3, 1e-2)  # of every method
# Of methods without a setting of their own: as many candidates as the others, in the same range.
MORE_LEARNING_RATES = (1e-3, 1.3e-3, 1.8e-3, 2.4e-3, 3e-3, 4e-3, 5.5e-3, 7.5e-3, 1e-2)
TUNING_TASKS = ("rolenav8", "vmas_navigation", "tag")
TUNING_SEEDS = (100, 101)  # the report never uses them
SURVIVORS = 2  # of a task, and of all tasks together

# A task of the study: its name in the package, and all settings that are the same for every method.
TASKS: dict[str, dict[str, Any]] = {
    "rolenav3": {"task": "rolenav"},
    "rolenav8": {"task": "rolenav:n_agents=8"},
    "rolenav16": {"task": "rolenav:n_agents=16"},
    "vmas_navigation": {"task": "vmas/navigation", "t_max": 307_200, "updates_per_rollout": 16},
    "vmas_dispersion": {
        "task": "vmas/dispersion",
        "t_max": 128_000,
        "learner": "nq",
        "mixer": "vdn",
        "gamma": 0.97,
        "td_lambda": 0.9,
        "lr_final": 0.0,
        "target_update": "polyak",
        "batch_size": 16,
        "buffer_size": 300,
        "updates_per_rollout": 64,
        "epsilon_anneal_steps": 30_000,
    },
    "vmas_het_mass": {
        "task": "vmas/het_mass",
        "t_max": 102_400,
        "updates_per_rollout": 128,
        "batch_size": 8,
    },
    "vmas_give_way": {"task": "vmas/give_way", "t_max": 153_600, "updates_per_rollout": 16},
    "vmas_asym_joint": {"task": "vmas/asym_joint", "t_max": 153_600, "updates_per_rollout": 16},
    "spread": {
        "task": "mpe/simple_spread",
        "mixer": "qmix",
        "t_max": 70_000,
        "n_envs": 8,
        "updates_per_rollout": 8,
    },
    "tag": {
        "task": "mpe/simple_tag:prey=random",
        "t_max": 100_000,
        "learner": "nq",
        "mixer": "vdn",
        "gamma": 0.95,
        "td_lambda": 0.8,
        "lr_final": 0.0,
        "target_update": "polyak",
        "batch_size": 16,
        "buffer_size": 500,
        "n_envs": 16,
        "updates_per_rollout": 32,
        "epsilon_anneal_steps": 30_000,
    },
    "lbf": {
        "task": "lbforaging/Foraging-6x6-2p-2f-coop-v3",
        "t_max": 150_000,
        "learner": "nq",
        "mixer": "vdn",
        "gamma": 0.97,
        "td_lambda": 0.8,
        "lr_final": 0.0,
        "target_update": "polyak",
        "batch_size": 16,
        "buffer_size": 1000,
        "n_envs": 16,
        "updates_per_rollout": 32,
        "epsilon_anneal_steps": 40_000,
    },
    "smax": {
        "task": "smax/smacv2_5_units",
        "t_max": 1_000_000,
        "hidden_dim": 128,
        "learner": "nq",
        "mixer": "vdn",
        "lr_final": 0.0,
        "batch_size": 32,
        "buffer_size": 2000,
        "updates_per_rollout": 16,
        "target_update": "polyak",
        "epsilon_anneal_steps": 60_000,
        "test_interval": 50_000,
        "test_episodes": 256,
    },
}
OWN_EXTRA = ("smax",)  # tasks whose package `make setup` does not install: they run only when they are named
# Their methods: those with the best interquartile mean over the other tasks, and some that are always there.
LEADERS, ALWAYS = 3, ("k24", "fups", "fups-id", "nops")

# Runs of the report, seeds 0, 1, ...: ten where a run takes under a minute, three above ten minutes, else five.
SEEDS = dict.fromkeys(TASKS, 5) | {"rolenav3": 10, "rolenav8": 10, "smax": 3}


def candidates(method: str) -> list[dict[str, float]]:
    """The nine settings of a method that tuning chooses from: each learning rate with each value of its own setting."""
    search = METHODS[method].search
    if not search:
        return [{"lr": lr} for lr in MORE_LEARNING_RATES]
    return [{"lr": lr, **own} for lr in LEARNING_RATES for own in search]


def study_run(task: str, method: str, candidate: int, seed: int) -> Config:
    """A run of the tuning or the report; `candidate` is an index of `candidates`."""
    return build_config({**TASKS[task], "method": method, **candidates(method)[candidate], "seed": seed})


def first_round(task: str, method: str) -> list[Config]:
    """All candidates once."""
    return [study_run(task, method, k, TUNING_SEEDS[0]) for k in range(len(candidates(method)))]


def second_round(task: str, method: str, chosen: list[int]) -> list[Config]:
    """The candidates that are left, with the other seed."""
    return [study_run(task, method, k, TUNING_SEEDS[1]) for k in chosen]
