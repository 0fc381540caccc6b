"""Builders of environments of PettingZoo: whatever an import path of Python names."""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter
from typing import Any

from k24lab.envs.base import TaskBuilder, VecEnv
from k24lab.envs.pettingzoo import LIMIT_ATTRIBUTES, ParallelEnv, PettingZooEnv, call
from k24lab.envs.worker_processes import vectorize
from k24lab.errors import ConfigError, RunError, told

EPISODE_LIMIT = Parameter("episode_limit", Parameter.KEYWORD_ONLY, default=None)

# Imports what an environment is built with: its factory, and the factory's options.
Load = Callable[[], tuple[Callable[..., ParallelEnv], list[Parameter]]]


def pettingzoo_builder(task: str, load: Load) -> TaskBuilder:
    """The builder of PettingZooEnvs; `load` must be picklable, for worker processes."""

    def build(n_envs: int, workers: int = 0, **options: Any) -> VecEnv:
        return vectorize(partial(build_env, task, load, options), n_envs, workers)

    sizes = [Parameter(name, Parameter.KEYWORD_ONLY) for name in ("n_envs", "workers")]
    return TaskBuilder(build, {option.name: option for option in [*sizes, *load()[1]]})


def build_env(task: str, load: Load, options: Mapping[str, Any]) -> PettingZooEnv:
    """Build one environment; whatever its factory raises, even `sys.exit`, is a ConfigError."""
    factory, parameters = load()
    own = dict(options)
    episode_limit = own.pop("episode_limit", None) if EPISODE_LIMIT in parameters else None
    known = {p.name: p.default for p in parameters if p.default is not p.empty} | own
    named_limit = next((known[name] for name in LIMIT_ATTRIBUTES if known.get(name) is not None), None)
    try:
        env = call("its factory", factory, **own)
    except RunError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        refused = f"refuses the options {own}" if own else "cannot be built"
        raise ConfigError(f"task {task!r} {refused}: {error}") from error
    try:
        return PettingZooEnv(env, episode_limit, named_limit)
    except Exception as error:  # nobody else can close what was built
        with contextlib.suppress(RunError, AttributeError):
            call("close()", env.close)
        raise ConfigError(f"task {task!r}: {error if isinstance(error, ConfigError) else told(error)}") from error


def import_builder(path: str) -> TaskBuilder:
    """The builder of what an import path names: `module.factory`, `module:factory`, or a module of PettingZoo.

    Of such a module `parallel_env` is taken, or where there is none, as in turn-based games, `env`.

    Its options are those of the factory and `episode_limit` (env steps), which is required if the
    environment does not name its own in one of LIMIT_ATTRIBUTES.

    Raises:
        ConfigError: nothing can be imported from `path`, or it is no factory of environments.
    """
    return pettingzoo_builder(f"pettingzoo/{path}", partial(_load, path))


def _load(path: str) -> tuple[Callable[..., ParallelEnv], list[Parameter]]:
    factory = find_factory(path)
    options = [option for option in factory_options(factory) if option.name not in ("n_envs", "workers")]
    return factory, [EPISODE_LIMIT, *(option for option in options if option.name != EPISODE_LIMIT.name)]


def find_factory(path: str) -> Callable[..., ParallelEnv]:
    """What builds the environments of an import path; raises ConfigError as `import_builder`."""
    module_name, _, attribute = path.partition(":")
    try:
        found = _locate(module_name, attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything, even sys.exit, when it is imported
        raise ConfigError(f"task 'pettingzoo/{path}': cannot import {path!r}: {told(error)}") from error
    if inspect.ismodule(found):
        found = getattr(found, "parallel_env", getattr(found, "env", None))
    if not callable(found):
        raise ConfigError(
            f"task 'pettingzoo/{path}': neither a function or class that builds an environment, nor a module with "
            "parallel_env or env (an old version of the module?)"
        )
    return found


def _locate(module_name: str, attribute: str) -> Any:
    """The module, or the attribute of a module, that a path names."""
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        parent, _, last = module_name.rpartition(".")
        if attribute or not parent or error.name != module_name:  # the last: a package that it needs is missing
            raise
        module, attribute = importlib.import_module(parent), last
    return getattr(module, attribute) if attribute else module


def factory_options(factory: Callable[..., Any]) -> list[Parameter]:
    """What can be given to a factory by name."""
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # of functions in C there is none
        return [Parameter("options", Parameter.VAR_KEYWORD)]
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    named = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in parameters if p.kind in by_name]
    return named + [p for p in parameters if p.kind is Parameter.VAR_KEYWORD]
