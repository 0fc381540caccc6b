"""Environments by the name of their task: `make_env("rolenav:n_agents=8", n_envs=32)`."""

import inspect
from collections.abc import Iterable, Mapping
from inspect import Parameter

from k24lab.envs.base import TaskBuilder, VecEnv
from k24lab.envs.tasks import format_task, parse_task
from k24lab.errors import ConfigError, unknown
from k24lab.values import convert

KINDS = (bool, int, float, str)  # of options that are checked
TRUTH = {"true": True, "false": False}
NO_OPTIONS = {"n_envs", "workers", "device"}  # what a builder takes besides the options of a task


def task_names() -> list[str]:
    """Every task that can be named; `pettingzoo/<import path>` stands for any other parallel environment."""
    from k24lab.envs.mpe2 import MPE2_TASKS
    from k24lab.envs.mpe_tasks import MPE_TASKS
    from k24lab.envs.smacv2 import SMACV2_TASKS
    from k24lab.envs.smax import SCENARIOS
    from k24lab.envs.vmas import VMAS_TASKS

    libraries: dict[str, Iterable[str]] = {
        "mpe": MPE_TASKS,
        "mpe2": MPE2_TASKS,
        "smacv2": SMACV2_TASKS,
        "smax": SCENARIOS,
        "vmas": VMAS_TASKS,
    }
    return sorted(["rolenav", *(f"{library}/{name}" for library, names in libraries.items() for name in names)])


def _builder(name: str) -> TaskBuilder:
    from k24lab.envs.mpe2 import mpe2_builder
    from k24lab.envs.mpe_tasks import mpe_builder
    from k24lab.envs.pettingzoo_import import import_builder
    from k24lab.envs.rolenav import RoleNav
    from k24lab.envs.smacv2 import smacv2_builder
    from k24lab.envs.smax import smax_builder
    from k24lab.envs.tuple_envs import PREFIXES, tuple_builder
    from k24lab.envs.vmas import vmas_builder

    if name == "rolenav":
        return TaskBuilder(RoleNav, inspect.signature(RoleNav).parameters)
    library, _, own_name = name.partition("/")
    if library == "pettingzoo":
        return import_builder(own_name)
    if library in PREFIXES:  # as many as their ids have sizes
        return tuple_builder(library, own_name)
    if library == "smacv2":
        return smacv2_builder(own_name)  # any size, not only the published ones
    if name not in task_names():
        raise ConfigError(unknown("task", name, [*task_names(), "pettingzoo/<import path>"]))
    return {"mpe": mpe_builder, "mpe2": mpe2_builder, "smax": smax_builder, "vmas": vmas_builder}[library](own_name)


def make_env(task: str, n_envs: int, workers: int = 0, device: str = "cpu") -> VecEnv:
    """Build `n_envs` copies of the task, e.g. `rolenav:n_agents=8`, `mpe2/simple_spread`, `pettingzoo/my.env_v0`.

    Args:
        task: name and options.
        n_envs: E.
        workers: processes for environments that are stepped one at a time; 0: all in this one.
        device: of environments in torch (RoleNav, MPE, VMAS), whose steps then never leave it; others step on the CPU.

    Raises:
        ConfigError: unknown task or option, one that the environment refuses, or workers for a task that steps
            all its environments at once.

    Examples:
        >>> import k24lab
        >>> env = k24lab.make_env("rolenav:n_agents=4", n_envs=8)
        >>> env.reset(seed=0).obs.shape[:2], env.spec.n_actions
        (torch.Size([8, 4]), (5, 5, 5, 5))
    """
    name, given = parse_task(task)
    build, parameters = _builder(name)
    options = _checked_options(name, given, parameters)
    if workers and "workers" not in parameters:
        raise ConfigError(f"n_workers = {workers}: {name!r} steps all its environments at once, allowed is 0")
    where = {"workers": workers, "device": device}
    return build(n_envs=n_envs, **options, **{key: where[key] for key in where.keys() & parameters.keys()})


def _checked_options(name: str, given: Mapping[str, object], parameters: Mapping[str, Parameter]) -> dict[str, object]:
    """The options of a task in the types that its builder wants; raises ConfigError for one that it does not have."""
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        allowed = set(parameters) - NO_OPTIONS
        for key in given.keys() - allowed:
            raise ConfigError(f"task {name!r}: " + unknown("option", key, allowed))
    options = dict(given)
    for key in given.keys() & parameters.keys():
        try:
            options[key] = _typed(parameters[key], given[key])
        except TypeError as error:
            raise ConfigError(f"task {name!r}: option {key} = {given[key]!r} {error}") from None
    return options


def _typed(parameter: Parameter, value: object) -> object:
    """The value in the type of the option: its annotation, real or as text, or else the type of its default.

    The words true and false are truth values where one may stand. Raises TypeError with the reason.
    """
    annotation, default = parameter.annotation, parameter.default
    bare, said = annotation is parameter.empty, str(annotation)
    kind = next((kind for kind in KINDS if annotation in (kind, kind.__name__)), None)
    kind = bool if bare and type(default) is bool else kind
    nothing_known = bare and default is parameter.empty
    if isinstance(value, str) and (kind is bool or nothing_known or ("bool" in said and "str" not in said)):
        value = TRUTH.get(value.strip().lower(), value)
    if kind is bool and not isinstance(value, bool):
        raise TypeError("must be true or false")
    if bare and type(default) in (int, float) and isinstance(value, bool | str):  # a fraction for 1 may be meant
        raise TypeError(f"is a {type(value).__name__}, not a number")
    return value if kind is None else convert(kind, value)


def canonical_task(task: str) -> str:
    """The one spelling of a task: options sorted and in their types, those that repeat a default left out.

    Nothing is imported for a task without options.

    Raises:
        ConfigError: an unknown task or option, one of the wrong type, or one that is given twice.
    """
    name, given = parse_task(task)
    if not given:
        return name
    parameters = _builder(name).parameters
    options = _checked_options(name, given, parameters)
    defaults = {key: parameters[key].default if key in parameters else None for key in options}
    options = {key: _like(defaults[key], value) for key, value in options.items()}
    own = {key: v for key, v in options.items() if type(v) is not type(defaults[key]) or v != defaults[key]}
    return format_task(name, own)


def _like(default: object, value: object) -> object:
    """A number in the type of the default, where that changes no value: `N=3.0` is `N=3`, `scale=1` is `scale=1.0`."""
    if type(default) is float and type(value) is int and float(value) == value:
        return float(value)
    return int(value) if type(default) is int and isinstance(value, float) and value.is_integer() else value


def drawable(task: str) -> str:
    """The task, with `render_mode=rgb_array` where it is one of PettingZoo that takes it; else as it is."""
    name, options = parse_task(task)
    if not name.startswith("pettingzoo/") or "render_mode" in options:
        return task
    able = "render_mode" in _builder(name).parameters
    return f"{task}{',' if options else ':'}render_mode=rgb_array" if able else task
