"""Grid files: which runs a sweep consists of, all checked before the first one starts."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from k24lab.config import Config, build_config
from k24lab.envs import make_env
from k24lab.errors import ConfigError, unknown
from k24lab.notebooks import check_notebook

GRID_KEYS = ("name", "notebook", "common", "per_task", "grids")


class Grid(NamedTuple):
    """The runs of a grid file."""

    name: str  # group of runs, a folder under runs/
    configs: list[Config]
    notebook: str | None = None  # that each run is executed in, through papermill; None trains without one


def load_grid(path: Path) -> Grid:
    """Read a grid file; README.md has its format.

    Raises:
        ConfigError: no such file, no YAML, unknown keys, a bad value, task or notebook, the same run twice.
    """
    data = _read(path)
    common, per_task = (data.get(key) or {} for key in ("common", "per_task"))
    if not isinstance(per_task, dict):
        raise ConfigError(f"{path}: per_task must map tasks to parameters")
    parts = (common, *per_task.values(), *data["grids"])
    if not data["grids"] or not all(isinstance(part, dict) for part in parts):
        raise ConfigError(f"{path}: common, each task and every one of grids (at least one) map parameters to values")
    configs = [config for grid in data["grids"] for config in expand(common, grid, per_task)]
    tasks = {config.task for config in configs}
    for task in per_task.keys() - tasks:
        raise ConfigError(f"{path}: per_task: " + unknown("task", task, tasks))
    hashes = [config.hash() for config in configs]
    for config, h in zip(configs, hashes, strict=True):
        if hashes.count(h) > 1:
            raise ConfigError(f"{path}: the run {config.method}, {config.task}, seed {config.seed} stands there twice")
    for task in tasks:
        make_env(task, 1).close()  # an unknown task or option is an error now, not in an hour
    if notebook := data.get("notebook"):
        check_notebook(notebook)
    return Grid(str(data.get("name") or path.stem), configs, notebook)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no grid file {path}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("grids"), list):
        raise ConfigError(f"{path} must have the key grids, a list (and may have {', '.join(GRID_KEYS[:-1])})")
    for key in data.keys() - set(GRID_KEYS):
        raise ConfigError(f"{path}: " + unknown("key", key, GRID_KEYS))
    return data


def expand(
    common: Mapping[str, Any], grid: Mapping[str, Any], per_task: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Config]:
    """All combinations of a grid's lists; a single value counts as a list of one.

    Under `zip` stand lists of the same length that are walked side by side, under `list` whole sets of parameters;
    each is one axis of the product. A grid's values win over those of its task, and these over the common ones.

    Raises:
        ConfigError: an empty list, lists under `zip` of different lengths, or parameters that no run can have.
    """
    axes = [_axis(key, value) for key, value in grid.items()]
    configs = []
    for choice in itertools.product(*axes):
        own: dict[str, Any] = {}
        for part in choice:
            for key in part.keys() & own.keys():
                raise ConfigError(f"grid: {key} is given twice")
            own |= part
        task = own.get("task", common.get("task", Config.task))
        of_task = (per_task or {}).get(task, {}) if isinstance(task, str) else {}
        configs.append(build_config({**common, **of_task, **own}))
    return configs


def _axis(key: str, value: Any) -> list[dict[str, Any]]:
    """One axis of a grid: the sets of parameters that it chooses from."""
    if key == "list":
        if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
            raise ConfigError("grid: list must be a list of mappings from parameters to values, at least one")
        return value
    if key == "zip":
        if not isinstance(value, dict) or not value or not all(isinstance(v, list) for v in value.values()):
            raise ConfigError("grid: zip must map parameters to lists")
        lengths = {name: len(values) for name, values in value.items()}
        if len(set(lengths.values())) > 1 or not min(lengths.values()):
            raise ConfigError(f"grid: the lists under zip must be equally long and not empty: {lengths}")
        return [dict(zip(value, values, strict=True)) for values in zip(*value.values(), strict=True)]
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ConfigError(f"grid: {key} = [] has no value")
    return [{key: each} for each in values]
