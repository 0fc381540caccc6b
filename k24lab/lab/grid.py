"""Grid files: which runs a sweep consists of, all checked before the first one starts."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from k24lab.envs.tasks import canonical_text
from k24lab.errors import ConfigError, unknown
from k24lab.lab.config import NOT_HASHED, Config, build_config
from k24lab.lab.notebooks import parameter_names
from k24lab.lab.paths import SHIPPED
from k24lab.lab.runs import check_name
from k24lab.lab.unused_settings import same_run_key
from k24lab.lab.yamlfile import load_yaml

GRID_KEYS = ("name", "notebook", "common", "per_task", "grids")
ANCHORS = "x-"  # prefix of keys for what anchors hold: `x-long: &long {t_max: 300000}`, then `<<: *long`


class Grid(NamedTuple):
    """The runs of a grid file."""

    name: str  # group of runs, a folder under runs/
    configs: list[Config]
    notebook: str | None = None  # that each run is executed in, through papermill; None trains without one


def load_grid(path: Path, check: bool = True) -> Grid:
    """Read a grid file (docs/experiments.md has its format) and check all of its runs.

    Args:
        path: of the file, or the name of a grid that comes with the package (`demo`).
        check: also build the environments, and refuse the same run twice and an unknown notebook. Without it torch is
            not loaded, and a task that repeats a default (`rolenav:n_agents=3`) is spelled as written.

    Raises:
        ConfigError: no such file, no YAML, unknown keys, a bad value, task or notebook, the same run twice.
    """
    path = _find(path)
    data = _read(path)
    try:
        grid = _build(data, path.stem, _canonical_task if check else canonical_text)
        if check:
            _refuse_repeated(grid.configs)
            _check_environments(grid.configs)
            if grid.notebook is not None:
                parameter_names(grid.notebook, needed=("name", "overrides"))  # or no run can be its job
        return grid
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _canonical_task(task: str) -> str:
    from k24lab.envs.registry import canonical_task  # environments load torch

    return canonical_task(task)


def _build(data: Mapping[str, Any], stem: str, spell: Callable[[str], str]) -> Grid:
    common, per_task = (_mapping(key, data.get(key)) for key in ("common", "per_task"))
    per_task = _by_task(per_task, spell)
    configs = []
    for number, entry in enumerate(data["grids"], start=1):
        where = f"grids, entry {number}"
        own = _mapping(where, entry)
        try:
            configs += expand(common, own, per_task, spell)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    tasks = dict.fromkeys(config.task for config in configs)
    for task in per_task.keys() - tasks:
        raise ConfigError("per_task: " + unknown("task", task, tasks))
    name = stem if data.get("name") is None else data["name"]
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        raise ConfigError(f"name = {name!r} must be text")
    notebook = data.get("notebook")
    if not isinstance(notebook, str | None):
        raise ConfigError(f"notebook = {notebook!r} must be the name of a notebook, e.g. 02_train")
    return Grid(check_name(str(name)), configs, notebook)


def _by_task(per_task: Mapping[Any, Any], spell: Callable[[str], str]) -> dict[Any, dict[str, Any]]:
    """The settings of each task, under the task's one spelling."""
    found: dict[Any, dict[str, Any]] = {}
    given: dict[Any, Any] = {}
    for task, values in per_task.items():
        key = spell(task) if isinstance(task, str) else task
        if key in found:
            raise ConfigError(f"per_task: {given[key]} and {task} are the same task")
        found[key], given[key] = _mapping(f"per_task: {task}", values), task
    return found


def expand(
    common: Mapping[str, Any],
    grid: Mapping[str, Any],
    per_task: Mapping[str, Mapping[str, Any]] | None = None,
    spell: Callable[[str], str] = _canonical_task,
) -> list[Config]:
    """All combinations of a grid's lists; a single value counts as a list of one.

    Under `zip` stand lists of the same length that are walked side by side, under `list` whole sets of parameters;
    each is one axis of the product. A grid's values win over those of its task, and these over the common ones.
    `per_task` has the tasks as `spell` gives them.

    Raises:
        ConfigError: an empty list, lists under `zip` of different lengths, or parameters that no run can have.
    """
    configs = []
    for choice in itertools.product(*(_axis(key, value) for key, value in grid.items())):
        own: dict[str, Any] = {}
        for part in choice:
            for key in part.keys() & own.keys():
                raise ConfigError(f"{key} is given twice")
            own |= part
        task = own.get("task", common.get("task", Config.task))
        of_task = (per_task or {}).get(spell(task), {}) if isinstance(task, str) else {}
        config = build_config({**common, **of_task, **own})
        configs.append(dataclasses.replace(config, task=spell(config.task)))
    return configs


def _axis(key: str, value: Any) -> list[dict[str, Any]]:
    """One axis of a grid: the sets of parameters that it chooses from."""
    if key == "list":
        if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
            raise ConfigError(f"list = {value!r} must be a list of mappings from parameters to values, at least one")
        return value
    if key == "zip":
        if not isinstance(value, dict) or not value or not all(isinstance(v, list) for v in value.values()):
            raise ConfigError(f"zip = {value!r} must map parameters to lists")
        lengths = {name: len(values) for name, values in value.items()}
        if len(set(lengths.values())) > 1 or not min(lengths.values()):
            raise ConfigError(f"the lists under zip must be equally long and not empty: {lengths}")
        return [dict(zip(value, values, strict=True)) for values in zip(*value.values(), strict=True)]
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ConfigError(f"{key} = [] has no value")
    return [{key: each} for each in values]


def _refuse_repeated(configs: Sequence[Config]) -> None:
    """Refuse the same run twice, or two that differ in settings of no effect: a seed would count twice."""
    first: dict[str, Config] = {}
    for config in configs:
        other = first.setdefault(same_run_key(config), config)
        if other is config:
            continue
        run = f"the run {config.method}, {config.task}, seed {config.seed}"
        differ = [key for key in vars(config) if getattr(config, key) != getattr(other, key) and key not in NOT_HASHED]
        if not differ:
            raise ConfigError(f"{run} is given twice")
        changes = "; ".join(f"{key} = {getattr(other, key)!r} and {getattr(config, key)!r}" for key in differ)
        raise ConfigError(
            f"{run} would be trained twice: {changes} change nothing of it; give the method an entry of its own"
        )


def _check_environments(configs: Sequence[Config]) -> None:
    """An unknown task or option, or an environment without unit types, is an error now, not in an hour."""
    from k24lab.envs.base import EnvSpec
    from k24lab.envs.registry import make_env
    from k24lab.lab.checks import check_t_max
    from k24lab.marl.learner import check_types

    specs: dict[tuple[str, int], EnvSpec] = {}
    for config in configs:
        key = (config.task, config.n_workers)
        if key not in specs:
            env = make_env(config.task, 1, config.n_workers)
            env.close()
            specs[key] = env.spec
        check_types(config, specs[key])
        check_t_max(config, specs[key])


def _mapping(what: str, value: Any) -> dict[str, Any]:
    """Parameters and their values; nothing at all where a key has no value."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{what} = {value!r} must map names to values")
    return value


def _find(path: Path) -> Path:
    """The path; or the package's own grid, where only its name is given and there is no such file."""
    own = SHIPPED / "notebooks" / "grids" / f"{path}.yaml"
    return own if not path.suffix and not path.is_file() and own.is_file() else path


def _read(path: Path) -> dict[str, Any]:
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        own = sorted(file.stem for file in (SHIPPED / "notebooks" / "grids").glob("*.yaml"))
        raise ConfigError(f"no grid file {path}: {error.strerror}; {unknown('grid', path.stem, own)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    for key in data.keys() - set(GRID_KEYS) if isinstance(data, dict) else ():
        if not str(key).startswith(ANCHORS):
            raise ConfigError(f"{path}: " + unknown("key", key, [*GRID_KEYS, f"{ANCHORS}<anything>"]))
    if not isinstance(data, dict) or not isinstance(data.get("grids"), list) or not data["grids"]:
        others = ", ".join(GRID_KEYS[:-1])
        raise ConfigError(f"{path} must have the key grids, a list with at least one entry (and may have {others})")
    return data
