"""Builders of foreign environments by name: the tasks of mpe2, and whatever a path of Python names."""

import contextlib
import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from k24lab.envs.base import VecEnv
from k24lab.envs.foreign import LIMIT_ATTRIBUTES, ParallelEnv, call, close_env
from k24lab.envs.pettingzoo import PettingZooWorld
from k24lab.envs.scripted import PREY, Mpe2World
from k24lab.envs.vector import lift
from k24lab.errors import ConfigError, RunError, told, unknown

EPISODE_LIMIT = inspect.Parameter("episode_limit", inspect.Parameter.KEYWORD_ONLY, default=None)
SCREEN_OPTIONS = {"render_mode", "dynamic_rescaling", "benchmark_data"}  # of mpe2: they change nothing in an episode

MPE2_TASKS: dict[str, tuple[str, bool]] = {  # name -> module of mpe2, whether it has prey that a script plays
    "collect_treasure": ("collect_treasure_v1", False),
    "simple_formation": ("simple_formation_v1", False),
    "simple_line": ("simple_line_v1", False),
    "simple_reference": ("simple_reference_v3", False),
    "simple_speaker_listener": ("simple_speaker_listener_v4", False),
    "simple_spread": ("simple_spread_v3", False),
    "simple_tag": ("simple_tag_v3", True),
    "simple_world_comm": ("simple_world_comm_v3", True),
}


@dataclass(frozen=True)
class Builder:
    """Builds PettingZooWorlds; what it builds from is imported only when it or its signature is asked for."""

    task: str
    load: Callable[[], tuple[Callable[..., ParallelEnv], list[inspect.Parameter]]]  # factory and its options

    @property
    def __signature__(self) -> inspect.Signature:
        """`n_envs`, `workers` and the options of the environment, so that an unknown option can be named."""
        sizes = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("n_envs", "workers")]
        return inspect.Signature([*sizes, *self.load()[1]])

    def __call__(self, n_envs: int, workers: int = 0, **options: Any) -> VecEnv:
        """Build the environments, in this process or in `workers` others.

        Raises:
            ConfigError: an option that the environment refuses, or an environment that PettingZooWorld refuses.
        """
        return lift(partial(self.world, options), n_envs, workers)

    def world(self, options: Mapping[str, Any]) -> PettingZooWorld:
        """Build one.

        Raises:
            ConfigError: as above; whatever the factory raises, even `sys.exit`, is told in it.
        """
        env, limits = self.build(options)
        try:
            return PettingZooWorld(env, *limits)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # nobody else can close what was built
            with contextlib.suppress(RunError):
                close_env(env)
            said = str(error) if isinstance(error, ConfigError) else told(error)
            raise ConfigError(f"task {self.task!r}: {said}") from error

    def build(self, options: Mapping[str, Any]) -> tuple[ParallelEnv, tuple[object, object]]:
        """The foreign environment itself, and its episode limit: as given, and as its factory knows it.

        Raises:
            ConfigError: the factory raises.
        """
        factory, parameters = self.load()
        own = dict(options)
        episode_limit = own.pop("episode_limit", None) if EPISODE_LIMIT in parameters else None
        known = {p.name: p.default for p in parameters if p.default is not p.empty} | own
        named = next((known[name] for name in LIMIT_ATTRIBUTES if known.get(name) is not None), None)
        try:
            return call("its factory", factory, **own), (episode_limit, named)
        except RunError as error:
            if isinstance(error.__cause__, ConfigError):
                raise error.__cause__ from None
            refused = f"refuses the options {own}" if own else "cannot be built"
            raise ConfigError(f"task {self.task!r} {refused}: {error}") from error


def mpe2_builder(name: str) -> Builder:
    """The builder of a task of mpe2, with the options of its environment (`N`, `max_cycles`, ...)."""
    if name not in MPE2_TASKS:
        raise ConfigError(unknown("mpe2 task", name, MPE2_TASKS))
    return Builder(f"mpe2/{name}", partial(_load_mpe2, name))


def _load_mpe2(name: str) -> tuple[Callable[..., ParallelEnv], list[inspect.Parameter]]:
    module_name, has_prey = MPE2_TASKS[name]
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "hide")  # or pygame greets on standard output
    try:
        raw_env = importlib.import_module(f"mpe2.{module_name}").raw_env
    except ImportError as error:
        raise ConfigError(f"task 'mpe2/{name}' needs mpe2 ({error}): pip install 'mpe2>=1.1'") from error
    options = [option for option in _options(raw_env) if option.name not in SCREEN_OPTIONS]
    if has_prey:
        options.append(inspect.Parameter("prey", inspect.Parameter.KEYWORD_ONLY, default="flee"))
    return partial(_mpe2_world, raw_env, has_prey), options


def _mpe2_world(raw_env: Callable[..., Any], has_prey: bool, prey: str = "flee", **options: Any) -> ParallelEnv:
    if prey not in PREY:
        raise ConfigError(unknown("prey", prey, PREY))
    return Mpe2World(raw_env(**options), PREY[prey] if has_prey else None)


def import_builder(path: str) -> Builder:
    """The builder of a foreign environment: a module with `parallel_env`, `module.factory` or `module:factory`.

    Its options are those of the factory and `episode_limit` (env steps), which is required if the
    environment does not name its own in one of LIMIT_ATTRIBUTES.

    Raises:
        ConfigError: nothing can be imported from `path`, or it is no factory of parallel environments.
    """
    find_factory(path)
    return Builder(f"pettingzoo/{path}", partial(_load_imported, path))


def find_factory(path: str) -> Callable[..., ParallelEnv]:
    """What builds the environments of an import path; raises ConfigError as `import_builder`."""
    found = _locate(path)
    if inspect.ismodule(found):
        factory = getattr(found, "parallel_env", None)
        if factory is None:
            raise ConfigError(f"task 'pettingzoo/{path}': module {found.__name__!r} has no parallel_env{_turns(found)}")
        return factory
    if not callable(found):
        hint = _successor(path)  # PettingZoo puts an object in the place of an old version
        what = f"module {path!r} is of an old version" if hint else f"{found!r} is no function or class"
        raise ConfigError(f"task 'pettingzoo/{path}': {what}{hint or ' that builds an environment'}")
    return found


def _turns(module: Any) -> str:
    """What to do with a module that has turn-based environments only."""
    if not hasattr(module, "env"):
        return ""
    return (
        "; its env is turn-based: write a function that returns "
        "pettingzoo.utils.conversions.turn_based_aec_to_parallel(env()), and name that"
    )


def _successor(path: str) -> str:
    """A hint at the module of the same name and another version; mpe2 has those that were PettingZoo's MPE."""
    package, _, last = path.partition(":")[0].replace("pettingzoo.mpe", "mpe2").rpartition(".")
    base = last.rpartition("_v")[0]
    try:
        beside = pkgutil.iter_modules(importlib.import_module(package).__path__)
        found = next((module.name for module in beside if base and module.name.rpartition("_v")[0] == base), None)
    except Exception:  # nothing to look in
        return ""
    if package == "mpe2" and base in MPE2_TASKS:
        return f"; did you mean 'mpe2/{base}'?"
    return f"; did you mean 'pettingzoo/{package}.{found}'?" if found else ""


def _load_imported(path: str) -> tuple[Callable[..., ParallelEnv], list[inspect.Parameter]]:
    factory = find_factory(path)
    options = [option for option in _options(factory) if option.name not in ("n_envs", "workers", "episode_limit")]
    return factory, [EPISODE_LIMIT, *options]


def _locate(path: str) -> Any:
    """The module, or the attribute of a module, that a path names."""
    module_name, _, attribute = path.partition(":")
    try:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            parent, _, last = module_name.rpartition(".")
            if attribute or not parent or error.name != module_name:  # the last: a package that it needs is missing
                raise
            module, attribute = importlib.import_module(parent), last
        return getattr(module, attribute) if attribute else module
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything, even sys.exit, when it is imported
        expected = isinstance(error, ImportError | AttributeError | ValueError)
        said = f"{error}{_successor(path)}" if expected else told(error)
        raise ConfigError(f"task 'pettingzoo/{path}': cannot import {path!r}: {said}") from error


def _options(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    """What can be given to a factory by name."""
    kinds = inspect.Parameter
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # of functions in C there is none
        return [inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)]
    by_name = (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    named = [p.replace(kind=kinds.KEYWORD_ONLY) for p in parameters if p.kind in by_name]
    return named + [p for p in parameters if p.kind is kinds.VAR_KEYWORD]
