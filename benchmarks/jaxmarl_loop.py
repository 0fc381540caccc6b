"""JaxMARL's own training loops (`baselines/QLearning` of a checkout of it), compiled as a whole by jax."""

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import yaml

from benchmarks.worker import Meter

FOLDER = "baselines/QLearning"


def run(meter: Meter, checkout: str, baseline: str, config: str, rollouts: int, **own: Any) -> None:
    """Short runs of so many rollouts, one after the other.

    Args:
        meter: counts env steps.
        checkout: folder of JaxMARL's repository.
        baseline: the module, for example qmix_rnn.
        config: the file with its settings, of which `own` changes some.
        rollouts: of a run. It is compiled once, at the first piece.
        **own: settings under JaxMARL's names.
    """
    folder = Path(checkout) / FOLDER
    sys.path.insert(0, str(folder))
    module = importlib.import_module(baseline)
    settings = yaml.safe_load((folder / "config" / "alg" / f"{config}.yaml").read_text())
    settings |= {"WANDB_MODE": "disabled", "TEST_DURING_TRAINING": False, "LEARNING_STARTS": 0} | own
    steps = rollouts * settings["NUM_ENVS"] * settings["NUM_STEPS"]
    settings["TOTAL_TIMESTEPS"] = steps
    env, _ = module.env_from_config(settings)
    # These runs are short: they learn from the first rollout on, as a long one does nearly all of its time.
    module.fbx.make_trajectory_buffer = partial(_buffer, module.fbx.make_trajectory_buffer)
    train, key = jax.jit(module.make_train(settings, env)), jax.random.PRNGKey(0)
    while True:
        jax.block_until_ready(train(key))
        meter(steps)


def _buffer(make: Any, **settings: Any) -> Any:
    return make(**settings | {"min_length_time_axis": 1})
