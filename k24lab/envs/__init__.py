"""Worlds by name: `make_env("rolenav:n_agents=8", n_envs=32)`."""

import ast
import inspect
from collections.abc import Callable

from k24lab.config import convert
from k24lab.envs.base import EnvSpec, Step, VecEnv
from k24lab.envs.rolenav import RoleNav
from k24lab.errors import ConfigError, unknown

__all__ = ["EnvSpec", "Step", "VecEnv", "drawable", "make_env", "parse_task", "task_names"]


def parse_task(task: str) -> tuple[str, dict[str, object]]:
    """Split `"name:key=value,key=value"` into the name and its options (Python literals or strings).

    The name may hold a colon itself: `pettingzoo/my.module:factory:key=value`.

    Raises:
        ConfigError: an option that is not of the form key=value.
    """
    name, _, options = task.partition(":")
    factory, _, rest = options.partition(":")
    if name.startswith("pettingzoo/") and factory.isidentifier():
        name, options = f"{name}:{factory}", rest
    kwargs: dict[str, object] = {}
    for item in filter(None, options.split(",")):
        key, equals, value = item.partition("=")
        if not (equals and key.isidentifier()):
            raise ConfigError(f"task {task!r}: option {item!r} is not of the form key=value")
        try:
            kwargs[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            kwargs[key] = value
    return name, kwargs


def task_names() -> list[str]:
    """Every task that can be named; `pettingzoo/<import path>` stands for any other parallel environment."""
    return sorted(_builders())


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
    name, kwargs = parse_task(task)
    builder = _builder(name)
    parameters = inspect.signature(builder).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        allowed = set(parameters) - {"n_envs", "workers", "device"}
        for key in kwargs.keys() - allowed:
            raise ConfigError(f"task {name!r}: " + unknown("option", key, allowed))
    for key in kwargs.keys() & parameters.keys():
        kind = parameters[key].annotation
        try:
            kwargs[key] = convert(kind, kwargs[key]) if kind in (bool, int, float, str) else kwargs[key]
        except TypeError as error:
            raise ConfigError(f"task {name!r}: option {key} = {kwargs[key]!r} {error}") from None
    if workers and "workers" not in parameters:
        raise ConfigError(f"n_workers = {workers}: {name!r} steps all its environments at once, allowed is 0")
    where = {"workers": workers, "device": device}
    return builder(n_envs=n_envs, **kwargs, **{key: where[key] for key in where.keys() & parameters.keys()})


def drawable(task: str) -> str:
    """The task, told to draw itself where it is a foreign world of PettingZoo that can; any other as it is."""
    name, kwargs = parse_task(task)
    if not name.startswith("pettingzoo/") or "render_mode" in kwargs:
        return task
    able = "render_mode" in inspect.signature(_builder(name)).parameters
    return f"{task}{',' if kwargs else ':'}render_mode=rgb_array" if able else task
