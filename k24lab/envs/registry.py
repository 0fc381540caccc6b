"""Worlds by name: `make_env("rolenav:n_agents=8", n_envs=32)`."""

import functools
import inspect
from collections.abc import Callable, Mapping

from k24lab.envs.base import VecEnv
from k24lab.envs.rolenav import RoleNav
from k24lab.envs.tasks import format_task, parse_task
from k24lab.errors import ConfigError, unknown
from k24lab.values import convert

KINDS = (bool, int, float, str)  # of options that are checked
TRUTH = {"true": True, "false": False}
PLACES = {"n_envs", "workers", "device"}  # what a builder takes besides the options of a task


def task_names() -> list[str]:
    """Every task that can be named; `pettingzoo/<import path>` stands for any other parallel environment."""
    return sorted(_builders())


@functools.cache  # a grid asks for each of its runs
def _builders() -> dict[str, Callable[..., VecEnv]]:
    from k24lab.envs.factories import MPE2_TASKS, mpe2_builder
    from k24lab.envs.smacv2 import SMACV2_TASKS, smacv2_builder
    from k24lab.envs.smax import SCENARIOS, smax_builder
    from k24lab.envs.vmas import VMAS_TASKS, vmas_builder

    builders: dict[str, Callable[..., VecEnv]] = {"rolenav": RoleNav}
    builders |= {f"mpe2/{name}": mpe2_builder(name) for name in MPE2_TASKS}
    builders |= {f"vmas/{name}": vmas_builder(name) for name in VMAS_TASKS}
    builders |= {f"smax/{name}": smax_builder(name) for name in SCENARIOS}
    return builders | {f"smacv2/{name}": smacv2_builder(name) for name in SMACV2_TASKS}


def _builder(name: str) -> Callable[..., VecEnv]:
    from k24lab.envs.factories import import_builder
    from k24lab.envs.smacv2 import smacv2_builder
    from k24lab.envs.vmas import vmas_builder

    builders = _builders()
    if name.startswith("pettingzoo/"):
        return import_builder(name.removeprefix("pettingzoo/"))
    if name.startswith("smacv2/"):
        return smacv2_builder(name.removeprefix("smacv2/"))  # any size, not only the published ones
    if name in builders:
        return builders[name]
    if name.startswith("vmas/"):
        return vmas_builder(name.removeprefix("vmas/"))  # an error that says why the scenario is not offered
    raise ConfigError(unknown("task", name, [*builders, "pettingzoo/<import path>"]))


def make_env(task: str, n_envs: int, workers: int = 0, device: str = "cpu") -> VecEnv:
    """Build `n_envs` copies of the task, e.g. `rolenav:n_agents=8`, `mpe2/simple_spread`, `pettingzoo/my.env_v0`.

    Args:
        task: name and options.
        n_envs: E.
        workers: processes for worlds that step one environment at a time; 0: all in this one.
        device: of worlds in torch (RoleNav, VMAS), whose steps then never leave it; others step on the CPU.

    Raises:
        ConfigError: unknown task or option, one that the world refuses, or workers for a world that steps
            all its environments at once.
    """
    name, given = parse_task(task)
    builder = _builder(name)
    parameters = inspect.signature(builder).parameters
    options = _checked_options(name, given, parameters)
    if workers and "workers" not in parameters:
        raise ConfigError(f"n_workers = {workers}: {name!r} steps all its environments at once, allowed is 0")
    where = {"workers": workers, "device": device}
    return builder(n_envs=n_envs, **options, **{key: where[key] for key in where.keys() & parameters.keys()})


def _checked_options(
    name: str, given: Mapping[str, object], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, object]:
    """The options of a task in the types that its builder wants; raises ConfigError for one that it does not have."""
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        allowed = set(parameters) - PLACES
        for key in given.keys() - allowed:
            raise ConfigError(f"task {name!r}: " + unknown("option", key, allowed))
    options = dict(given)
    for key in given.keys() & parameters.keys():
        try:
            options[key] = _typed(parameters[key], given[key])
        except TypeError as error:
            raise ConfigError(f"task {name!r}: option {key} = {given[key]!r} {error}") from None
    return options


def _typed(parameter: inspect.Parameter, value: object) -> object:
    """The value in the type of the option: its annotation, real or as text, or else the type of its default.

    The words true and false, in any case, are truth values where one may stand, or where nothing is known; for
    environments every word counts as true. Raises TypeError with the reason.
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
    parameters = inspect.signature(_builder(name)).parameters
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
    """The task, told to draw itself where it is a foreign world of PettingZoo that can; any other as it is."""
    name, kwargs = parse_task(task)
    if not name.startswith("pettingzoo/") or "render_mode" in kwargs:
        return task
    able = "render_mode" in inspect.signature(_builder(name)).parameters
    return f"{task}{',' if kwargs else ':'}render_mode=rgb_array" if able else task
