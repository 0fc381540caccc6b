"""VMAS navigation with BenchMARL's MAPPO: K-2:4 and random masks against its shared and its separate networks.

    python examples/benchmarl_navigation.py run                 # trains what is not in the table yet, one run at a time
    python examples/benchmarl_navigation.py show                # the table of docs/benchmarl.md

Actions are continuous. All methods have the same critic, BenchMARL's own, so that they differ in the policy alone.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import tyro

if TYPE_CHECKING:
    from benchmarl.experiment import Experiment, ExperimentConfig
    from benchmarl.models.common import ModelConfig

TABLE = Path(__file__).parents[1] / "figures" / "benchmarl" / "navigation.csv"
METHODS = {
    "shared": "BenchMARL, shared parameters",
    "separate": "BenchMARL, separate parameters",
    "k24": "K-2:4",
    "k24-drawn": 'K-2:4, `on_policy_masks="drawn"`',
    "k24-slow": "K-2:4, `alpha_lr_factor=1`",
    "random24": "random 2:4 masks",
}
CELLS = (64, 64)  # of policy and critic


def policy(method: str) -> ModelConfig:
    """The model of the policy."""
    from benchmarl.models import MlpConfig
    from torch import nn

    from k24lab.core.config import MaskConfig
    from k24lab.integrations.benchmarl import K24MlpConfig

    if method in ("shared", "separate"):
        return MlpConfig(num_cells=CELLS, layer_class=nn.Linear, activation_class=nn.Tanh)
    masks = MaskConfig(alpha_lr_factor=1.0) if method == "k24-slow" else MaskConfig()
    return K24MlpConfig(num_cells=CELLS, masks="random" if method == "random24" else "learned", mask_config=masks)


def settings(method: str, folder: str, n_iters: int) -> ExperimentConfig:
    """BenchMARL's settings where they differ from its own: a budget for a CPU, and learning that fits it."""
    from benchmarl.experiment import ExperimentConfig

    config = ExperimentConfig.get_from_yaml()
    changes: dict[str, Any] = {
        "share_policy_params": method != "separate",
        "lr": 7e-4,
        "max_n_frames": None,
        "max_n_iters": n_iters,
        "on_policy_collected_frames_per_batch": 6000,
        "on_policy_n_envs_per_worker": 300,
        "on_policy_n_minibatch_iters": 8,
        "on_policy_minibatch_size": 3000,
        "evaluation_interval": 6000 * max(n_iters // 2, 1),
        "evaluation_episodes": 100,
        "loggers": [],
        "render": False,
        "save_folder": folder,
    }
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def build(method: str, seed: int, folder: str, n_iters: int) -> Experiment:
    """The experiment, ready to run."""
    from benchmarl.algorithms import MappoConfig
    from benchmarl.environments import VmasTask
    from benchmarl.experiment import Experiment
    from benchmarl.models import MlpConfig
    from torch import nn

    from k24lab.integrations.benchmarl import K24Callback

    return Experiment(
        task=VmasTask.NAVIGATION.get_from_yaml(),
        algorithm_config=MappoConfig.get_from_yaml(),
        model_config=policy(method),
        critic_model_config=MlpConfig(num_cells=CELLS, layer_class=nn.Linear, activation_class=nn.Tanh),
        seed=seed,
        config=settings(method, folder, n_iters),
        callbacks=[K24Callback(on_policy_masks="drawn" if method == "k24-drawn" else "argmax")],
    )


def train(method: str, seed: int, n_iters: int) -> list[dict[str, Any]]:
    """Train once; the test returns, each the mean over agents and episodes."""
    from benchmarl.experiment import Callback

    rows: list[dict[str, Any]] = []

    class Returns(Callback):
        def on_evaluation_end(self, rollouts: list[Any]) -> None:
            each = [rollout["next", "agents", "reward"].sum(dim=0).mean().item() for rollout in rollouts]
            frames = experiment.total_frames
            rows.append({"method": method, "seed": seed, "frames": frames, "return": round(sum(each) / len(each), 4)})

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of BenchMARL's and torchrl's own
        experiment = build(method, seed, folder, n_iters)
        experiment.callbacks.append(Returns())
        experiment.run()
    return rows


def run(seeds: int = 3, n_iters: int = 40, table: Path = TABLE) -> None:
    """Train every method with seeds 0, 1, ... and add the test returns to a table.

    Args:
        seeds: number of seeds.
        n_iters: batches of 6000 frames.
        table: runs that are in it are not trained again.
    """
    rows: list[dict[Any, Any]] = pd.read_csv(table).to_dict("records") if table.exists() else []
    for seed in range(seeds):
        for method in METHODS:
            if any((row["method"], row["seed"]) == (method, seed) for row in rows):
                continue
            rows += train(method, seed, n_iters)
            table.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_csv(table, index=False)


def show(table: Path = TABLE) -> None:
    """Print the table of the documentation.

    Args:
        table: as `run` wrote it.
    """
    print(summary(pd.read_csv(table)))


def summary(runs: pd.DataFrame) -> str:
    """Return of each method after half of the frames and after all: mean and range over seeds."""
    halves = sorted(runs["frames"].unique())[-2:]
    heads = [f"return after {frames // 1000}k frames" for frames in halves]
    lines = ["| policy | " + " | ".join(heads) + " |", "|---|---|---|"]
    for method, label in METHODS.items():
        cells = []
        for frames in halves:
            returns = runs.loc[(runs["method"] == method) & (runs["frames"] == frames), "return"]
            cells.append(f"{returns.mean():.2f} ({returns.min():.2f} to {returns.max():.2f})")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"run": run, "show": show})
