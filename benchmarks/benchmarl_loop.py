"""BenchMARL's own training loop, with its own environment, collector, replay buffer and logging."""

from collections.abc import Callable
from typing import Any

import torch
from benchmarl.algorithms import VdnConfig
from benchmarl.environments import VmasTask
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models import GruConfig, MlpConfig
from tensordict import TensorDictBase

from benchmarks.worker import Meter


class Frames(Callback):
    """Counts the frames of an experiment after the updates of each collected batch."""

    count: Callable[[], None]  # set when the experiment is built, which stores its callbacks in a file

    def on_train_end(self, training_td: TensorDictBase, group: str) -> None:
        """Count the frames of the last batch."""
        self.count()


def run(meter: Meter, model: str, n_envs: int, steps: int, updates: int, hidden_dim: int) -> None:
    """VDN on VMAS navigation: `updates` of `n_envs` episodes after each collection of as many."""
    torch.set_num_threads(1)
    config = ExperimentConfig.get_from_yaml()
    own: dict[str, Any] = {
        "max_n_frames": 10**9,
        "prefer_continuous_actions": False,
        "off_policy_collected_frames_per_batch": n_envs * steps,
        "off_policy_n_envs_per_worker": n_envs,
        "off_policy_n_optimizer_steps": updates,
        "off_policy_train_batch_size": n_envs * steps,
        "off_policy_memory_size": 1000 * steps,
        "evaluation": False,
        "render": False,
        "loggers": [],
        "create_json": False,
        "save_folder": ".",
    }
    for name, value in own.items():
        setattr(config, name, value)
    task = VmasTask.NAVIGATION.get_from_yaml()
    task.config["max_steps"] = steps
    frames = Frames()
    experiment = Experiment(
        task=task,
        algorithm_config=VdnConfig.get_from_yaml(),
        model_config=_model(model, hidden_dim),
        critic_model_config=None,
        seed=0,
        config=config,
        callbacks=[frames],
    )
    frames.count = lambda: meter(n_envs * steps)
    experiment.run()


def _model(model: str, hidden_dim: int) -> GruConfig | MlpConfig:
    """A GRU with two hidden layers behind it, or two hidden layers alone."""
    if model == "mlp":
        mlp = MlpConfig.get_from_yaml()
        mlp.num_cells = [hidden_dim, hidden_dim]
        return mlp
    gru = GruConfig.get_from_yaml()
    gru.hidden_size, gru.mlp_num_cells = hidden_dim, [hidden_dim, hidden_dim]
    return gru
