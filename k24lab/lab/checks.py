"""What is refused before a run starts: settings that cannot be used here, that do not fit, or that learn nothing."""

import os

import torch

from k24lab.envs.base import EnvSpec
from k24lab.envs.registry import make_env
from k24lab.errors import ConfigError
from k24lab.lab.config import Config
from k24lab.marl.learner import check_types
from k24lab.marl.replay import empty_batch
from k24lab.methods import get_method
from k24lab.ops.library import check_switch

COPIES = 5  # of every parameter: online and target network, gradient, and Adam's two means
FLOAT = 4  # bytes
HYPERNET = 64  # width of the hidden layers in QMIX's networks
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def check_usable(config: Config) -> None:
    """Refuse, as a ConfigError, what is not there, and a run that would learn nothing or not fit in memory."""
    check_switch()
    check_device(config.device)
    env = make_env(config.task, 1, config.n_workers, config.device)
    env.close()
    check_types(config, env.spec)
    if config.pipeline and env.spec.costly:
        raise ConfigError(
            f"pipeline = True: {config.task!r} is tested in the environments of training, allowed is False"
        )
    check_t_max(config, env.spec)
    check_memory(config, env.spec)
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

    Raises:
        ConfigError: with the smallest t_max and the largest batch_size that would do.
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


def check_memory(config: Config, spec: EnvSpec) -> None:
    """Refuse a run that cannot fit into the memory of its device.

    The estimate leaves out what an update allocates and what the environments take: a run that passes may still need
    too much.

    Raises:
        ConfigError: saying how much memory the run needs, for what, and how much there is.
    """
    sizes = [value.nbytes for value in vars(empty_batch(spec, 1, config.mixer == "qmix", device="meta")).values()]
    there, stored = device_memory(config.device), config.buffer_size
    if config.device == "cpu" and stored * max(sizes) <= there:
        # The system gives memory when it is written to (but no array larger than all there is), and a short run with
        # episodes of full length does not fill the buffer.
        stored = min(stored, config.t_max // spec.episode_limit + config.n_envs)
    played = config.n_envs if spec.costly else max(config.n_envs, config.test_episodes)
    widths = f"hidden_dim = {config.hidden_dim}"
    widths += f", mixing_embed_dim = {config.mixing_embed_dim}" if config.mixer == "qmix" else ""
    parts = {
        f"buffer_size = {config.buffer_size} episodes": stored * sum(sizes),
        f"{played} episodes played side by side (n_envs, test_episodes)": played * sum(sizes),
        f"networks and their optimizer ({widths})": COPIES * FLOAT * n_parameters(config, spec),
    }
    needed = sum(parts.values())
    if needed > there:
        largest = max(parts, key=lambda what: parts[what])
        where = "this machine" if config.device == "cpu" else config.device
        raise ConfigError(
            f"the run needs at least {_amount(needed)} of memory, {_amount(parts[largest])} of it for {largest}; "
            f"{where} has {_amount(there)}"
        )


def n_parameters(config: Config, spec: EnvSpec) -> int:
    """Weights that are trained: of the agent network, of masks or thresholds, and of QMIX; without biases."""
    method, n_masks = get_method(config.method), spec.n_unit_types if config.per_type else spec.n_agents
    inputs = spec.obs_dim + (spec.n_agents if config.agent_id else 0)
    hidden, gates = config.hidden_dim, 3 * config.hidden_dim
    shapes = {"fc1": (inputs, hidden), "rnn_input": (hidden, gates), "rnn_hidden": (hidden, gates)}
    shapes |= {"fc2": (hidden, hidden), "fc3": (hidden, hidden), "fc4": (hidden, spec.action_dim)}
    sizes = {name: columns * rows for name, (columns, rows) in shapes.items()}
    count = sum(size * (n_masks if name in method.own_layers else 1) for name, size in sizes.items())
    if method.learns_masks:
        count += n_masks * sum(sizes[name] for name in method.masked_layers(config))
    if config.mixer == "qmix":
        embed = config.mixing_embed_dim
        count += HYPERNET * (2 * spec.state_dim + (spec.n_agents + 1) * embed) + 2 * spec.state_dim * embed
    return count


def device_memory(device: str) -> int:
    """Bytes of physical memory of the machine, or of a GPU."""
    if device != "cpu":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _amount(size: int) -> str:
    power = min((max(size, 1).bit_length() - 1) // 10, len(UNITS) - 1)
    return f"{size / 1024**power:.3g} {UNITS[power]}"
