"""What is refused before a run starts: settings that cannot be used here, or that would learn nothing."""

import torch

from k24lab.envs.base import EnvSpec
from k24lab.envs.registry import make_env
from k24lab.envs.task_doctor import check_repeatable
from k24lab.errors import ConfigError
from k24lab.lab.config import Config
from k24lab.lab.memory import check_memory
from k24lab.marl.learner import check_types
from k24lab.ops.library import check_switch


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have."""
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= n:
        there = ", ".join(["'cpu'", *(f"'cuda:{k}'" for k in range(n))])
        raise ConfigError(f"device = {device!r}, but torch finds {n or 'no'} CUDA devices; allowed here: {there}")


def check_usable(config: Config) -> None:
    """Refuse, as a ConfigError, what is not there, and a run that would learn nothing or not fit in memory."""
    check_switch()
    check_device(config.device)
    env = make_env(config.task, 1, config.n_workers, config.device)
    env.close()
    check_types(config, env.spec)
    check_t_max(config, env.spec)
    check_memory(config, env.spec)
    if config.task.startswith("pettingzoo/"):
        check_repeatable(config.task)


def check_t_max(config: Config, spec: EnvSpec) -> None:
    """Refuse a run that would surely end before its buffer holds the first batch, and so would learn nothing.

    Each rollout adds n_envs episodes, whatever their lengths, and none begins at t_max or later. The last that a batch
    needs is reached latest by the shortest episodes that there can be: if that is too late, it is never reached. Where
    episodes may end early a run may or may not reach it; one that did not ends in an error (`Trainer.run_to_end`).

    Raises:
        ConfigError: with the smallest t_max and the largest batch_size that would do.
    """
    shortest = config.n_envs * spec.shortest_episode  # env steps of a rollout
    needed = -(-config.batch_size // config.n_envs)  # rollouts
    begins = (needed - 1) * shortest
    if begins < config.t_max:
        return
    largest = -(-config.t_max // shortest) * config.n_envs
    raise ConfigError(
        f"t_max = {config.t_max} is over before the first update: batch_size = {config.batch_size} episodes are "
        f"{needed} rollouts of n_envs = {config.n_envs}, of which the last begins after {begins} env steps at least; "
        f"allowed: t_max of at least {begins + 1}, or batch_size of at most {largest}"
    )
