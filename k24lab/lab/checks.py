"""What is refused before a run starts: settings that cannot be used here, that do not fit, or that learn nothing."""

import torch

from k24lab.envs.base import EnvSpec
from k24lab.envs.registry import make_env
from k24lab.errors import ConfigError
from k24lab.lab.config import Config
from k24lab.marl.learner import check_types
from k24lab.ops.library import check_switch


def check_usable(config: Config) -> None:
    """Refuse, as a ConfigError, what is not there, and a run that would learn nothing."""
    check_switch()
    check_device(config.device)
    env = make_env(config.task, 1, config.n_workers, config.device)
    env.close()
    check_types(config, env.spec)
    check_t_max(config, env.spec)
    if config.task.startswith("pettingzoo/"):
        from k24lab.envs.task_doctor import check_repeatable

        check_repeatable(config.task)


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have."""
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= n:
        there = ", ".join(["'cpu'", *(f"'cuda:{k}'" for k in range(n))])
        raise ConfigError(f"device = {device!r}, but torch finds {n or 'no'} CUDA devices; allowed here: {there}")


def check_t_max(config: Config, spec: EnvSpec) -> None:
    """Refuse a run that would surely end before its buffer holds the first batch, and so would learn nothing.

    Each rollout adds n_envs episodes, whatever their lengths, and none starts at t_max or later. The last rollout that
    a batch needs starts earliest if all episodes are as short as they can be: if that is too late, there is never an
    update. Otherwise it depends on how early episodes end; a run without an update fails (`Trainer.run_to_end`).
    """
    shortest = config.n_envs * spec.shortest_episode  # env steps of a rollout
    needed = -(-config.batch_size // config.n_envs)  # rollouts
    start = (needed - 1) * shortest
    if start < config.t_max:
        return
    largest = -(-config.t_max // shortest) * config.n_envs
    raise ConfigError(
        f"t_max = {config.t_max} is over before the first update: batch_size = {config.batch_size} episodes are "
        f"{needed} rollouts of n_envs = {config.n_envs}, of which the last starts after {start} env steps at least; "
        f"allowed: t_max of at least {start + 1}, or batch_size of at most {largest}"
    )
