"""Every setting of a run: flat, frozen, checked; the same names in Python, notebooks, grids and on the command line."""

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from k24lab.core.config import MaskConfig, mask_problems
from k24lab.envs.tasks import canonical_text
from k24lab.errors import ConfigError, unknown
from k24lab.lab.callbacks import LOGGERS
from k24lab.marl.config import TrainingConfig
from k24lab.methods import METHODS, get_method
from k24lab.values import convert, range_problems

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]

# What a learner changes: `nq` has the optimiser settings of pymarl2 (Hu et al., 2021) and TD(lambda) targets.
LEARNER_DEFAULTS: dict[str, dict[str, Any]] = {
    "q": {},
    "nq": {
        "mixer": "qmix",
        "lr": 1e-3,
        "lr_final": 1e-3,
        "td_loss": "mse",
        "gamma": 0.99,
        "batch_size": 128,
        "buffer_size": 5000,
        "target_update": "hard",
        "epsilon_anneal_steps": 100_000,
    },
}

# What other libraries call our settings, where the spelling does not lead to the right one.
USUAL_NAMES = {
    "algorithm": "method",
    "discount": "gamma",
    "env": "task",
    "hidden_size": "hidden_dim",
    "learning_rate": "lr",
    "num_envs": "n_envs",
    "total_timesteps": "t_max",
}


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """One run: what is learned, where, with which seed and for how long.

    `k24lab.build_config` makes one with the defaults of its method and learner, and with checks of all names.

    Examples:
        >>> import k24lab
        >>> config = k24lab.Config(task="rolenav", seed=1)
        >>> config.seed, config.hidden_dim, config.method
        (1, 64, 'k24')
    """

    task: str = "rolenav"  # name[:key=value,...], e.g. rolenav:n_agents=8
    method: MethodName = "k24"
    log_interval: int = 2_000  # env steps between two logged rows of metrics
    test_interval: int = 10_000  # env steps between two tests
    test_episodes: int = 100  # rounded up to whole batches of n_envs where environments are processes
    checkpoint_interval: int = 20_000  # env steps between two checkpoints
    snapshot_interval: int = 10_000  # env steps between stored masks
    n_threads: int = 1  # of the kernels (two at most) or else of torch; for several runs one each is fastest
    n_workers: int = 0  # processes, for libraries that step one environment at a time (mpe2, PettingZoo, SMACv2)
    pipeline: bool = False  # collect during the updates, in a second process, with weights that are one rollout older
    tensorboard: bool = False  # the same as loggers="tensorboard"
    loggers: str = ""  # csv, tensorboard, wandb, or several: csv,wandb

    def __post_init__(self) -> None:
        problems = _range_problems(self)
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def logger_names(self) -> list[str]:
        """Names of the loggers that follow the run, each once."""
        names = [name.strip() for name in self.loggers.split(",") if name.strip()]
        return list(dict.fromkeys(names + ["tensorboard"] * self.tensorboard))

    def hash(self) -> str:
        """Eight hex digits that two configurations share only if they define the same run."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in NOT_HASHED and ADDED.get(k, ()) != v}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


# No part of what is learned: where a run computes, and what it writes. n_workers and loggers change no number.
# n_threads, like the CPU kernels (K24LAB_KERNELS), changes the order of sums and with it the last digits of all numbers
# from the first update on: docs/experiments.md says what is the same to the bit. Two such runs are samples of the
# same experiment, so they share a hash; provenance.jsonl has both, and going on with other ones is a warning.
NOT_HASHED = frozenset({"n_threads", "n_workers", "tensorboard", "loggers"})
# Fields that came later, with what earlier versions did: a run that does the same keeps its hash, and so its name.
ADDED: dict[str, Any] = {
    "target_masks": "argmax",
    "acting_masks": "argmax",
    "grad_clip": "groups",
    "own_lr_factor": 1.0,
    "lr_factor_ramp": 0.0,
    "threshold_scale": 5.0,
    "gain_layers": "all",
    "gain_shrinkage": 0.0,
    "embedding_dim": 16,
    "pipeline": False,
}

_POSITIVE = (
    "hidden_dim mixing_embed_dim lr grad_norm_clip batch_size buffer_size target_update_interval n_envs "
    "updates_per_rollout t_max log_interval test_interval test_episodes checkpoint_interval snapshot_interval n_threads"
).split()
_NOT_NEGATIVE = "epsilon_anneal_steps seed n_workers".split()
_SHARE = "gamma td_lambda polyak epsilon_start epsilon_finish".split()


def _range_problems(config: Config) -> list[str]:
    """Every field out of its range, as sentences."""
    others = {name: value for name, value in vars(config).items() if name not in MaskConfig.__dataclass_fields__}
    problems = range_problems(others, _POSITIVE, _NOT_NEGATIVE, _SHARE) + mask_problems(config)
    for name in ("batch_size", "n_envs"):
        if getattr(config, name) > config.buffer_size:
            problems.append(f"{name} = {getattr(config, name)!r} must not exceed buffer_size = {config.buffer_size!r}")
    problems += get_method(config.method).problems(config)
    problems += [unknown("logger", name, LOGGERS) for name in config.logger_names if name not in LOGGERS]
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        problems.append(f"device = {config.device!r} must be 'cpu', 'cuda' or 'cuda:<number>'")
    if config.per_type and config.agent_id:
        problems.append("agent_id = True tells agents of a type apart, which mask_per = 'type' does not want")
    if config.lr_final is not None and config.lr_final < 0:
        problems.append(f"lr_final = {config.lr_final!r} must be at least 0 or None")
    if config.pipeline and config.n_workers:
        problems.append(f"n_workers = {config.n_workers!r} must be 0 with pipeline = True")
    return problems


def build_config(params: Mapping[str, Any] | None = None, /, **settings: Any) -> Config:
    """Make the configuration of a new run: defaults, what learner and method change of them, and the given values.

    The command line, grid files and notebooks all come here. One run has one spelling: -0.0 becomes 0.0, and the task
    gets its `k24lab.envs.tasks.canonical_text`.

    Args:
        params: settings by name.
        **settings: more of them; of a setting that stands in both, this value counts.

    Raises:
        ConfigError: all problems at once: unknown keys (with the nearest right name), wrong types, bad ranges; or
            `params` that are no mapping.

    Examples:
        >>> import k24lab
        >>> config = k24lab.build_config(task="rolenav:n_agents=4", method="k24", t_max=20_000)
        >>> config.task, config.gamma
        ('rolenav:n_agents=4', 0.95)
    """
    if params is not None and not isinstance(params, Mapping):
        kind = type(params).__name__
        raise ConfigError(f"params = {params!r} is a {kind}, not a mapping of settings: write build_config(task=...)")
    values = _converted({**(params or {}), **settings})
    values |= {key: value + 0.0 for key, value in values.items() if isinstance(value, float)}  # -0.0 + 0.0 is 0.0
    if "task" in values:
        values["task"] = canonical_text(values["task"])
    return _with_defaults(values)


def merge_settings(parameters: Mapping[str, Any], overrides: object) -> Config:
    """The configuration that a notebook's parameters (None: not given) and its `overrides` describe together.

    Raises:
        ConfigError: a setting that stands in both, or whatever `build_config` refuses.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ConfigError(f"overrides = {overrides!r} must map settings to values, e.g. {{'lr': 0.001}}")
    given, more = {key: value for key, value in parameters.items() if value is not None}, overrides or {}
    if twice := [f"{key} = {given[key]!r} and {more[key]!r}" for key in given if key in more]:
        raise ConfigError(f"given twice, as a parameter and in overrides: {'; '.join(twice)}")
    return build_config({**given, **more})


def stored_config(fields: Mapping[str, Any]) -> Config:
    """The configuration that a file holds, which an earlier version of the package may have written.

    A field that did not exist then has the value that stands for what the package did, and every value is spelt as it
    was, so that the name and hash of the run stay.
    """
    return _with_defaults(_converted({**ADDED, **fields}))


def _with_defaults(values: dict[str, Any]) -> Config:
    of_method = get_method(values.get("method", "k24")).settings
    return Config(**{**LEARNER_DEFAULTS[values.get("learner", "q")], **of_method, **values})


def _converted(params: Mapping[str, Any]) -> dict[str, Any]:
    """The given values in the types of their fields; raises ConfigError with every problem."""
    hints = typing.get_type_hints(Config)
    problems = [unknown("parameter", key, hints, USUAL_NAMES.get(key)) for key in params if key not in hints]
    values: dict[str, Any] = {}
    for key in params.keys() & hints.keys():
        try:
            values[key] = convert(hints[key], params[key])
        except TypeError as error:
            problems.append(f"{key} = {params[key]!r} {error}")
    if problems:
        raise ConfigError("; ".join(problems))
    return values
