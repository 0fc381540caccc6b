"""Grids of runs: validated before the first one starts, one process each, finished ones skipped."""

import itertools
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from k24lab.config import Config, build_config
from k24lab.envs import make_env
from k24lab.errors import ConfigError, RunError, unknown
from k24lab.runs import RunFolder, run_folder

GRID_KEYS = ("name", "common", "grids")


def load_grid(path: Path) -> tuple[str, list[Config]]:
    """Read a grid file: `name`, `common` parameters, and `grids`, each the product of lists of values.

    Raises:
        ConfigError: no such file, no YAML, unknown keys, a bad value or task, the same run twice.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no grid file {path}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("grids"), list):
        raise ConfigError(f"{path} must have the keys name, common (optional) and grids, a list")
    for key in data.keys() - set(GRID_KEYS):
        raise ConfigError(f"{path}: " + unknown("key", key, GRID_KEYS))
    common = data.get("common") or {}
    if not data["grids"] or not all(isinstance(part, dict) for part in (common, *data["grids"])):
        raise ConfigError(f"{path}: common and every one of grids (at least one) must map parameters to values")
    configs = [config for grid in data["grids"] for config in expand(common, grid)]
    hashes = [config.hash() for config in configs]
    for config, h in zip(configs, hashes, strict=True):
        if hashes.count(h) > 1:
            raise ConfigError(f"{path}: the run {config.method}, {config.task}, seed {config.seed} stands there twice")
    for task in {config.task for config in configs}:
        make_env(task, 1).close()  # an unknown task or option is an error now, not in an hour
    return str(data.get("name") or path.stem), configs


def expand(common: Mapping[str, Any], grid: Mapping[str, Any]) -> list[Config]:
    """All combinations of a grid's lists; a single value counts as a list of one.

    Raises:
        ConfigError: an empty list, or parameters that no run can have.
    """
    axes = {key: value if isinstance(value, list) else [value] for key, value in grid.items()}
    for key, values in axes.items():
        if not values:
            raise ConfigError(f"grid: {key} = [] has no value")
    return [
        build_config({**common, **dict(zip(axes, values, strict=True))}) for values in itertools.product(*axes.values())
    ]


def sweep(name: str, configs: list[Config], jobs: int) -> list[Path]:
    """Train all runs that are not finished, `jobs` processes at a time; what was begun goes on.

    Returns:
        The run folders.

    Raises:
        ConfigError: fewer than one process.
        RunError: runs that failed, each with the end of its log; the others are finished.
    """
    if jobs < 1:
        raise ConfigError(f"jobs = {jobs} must be at least 1")
    folders = [RunFolder(run_folder(config, name), config) for config in configs]
    open_runs = [folder for folder in folders if not folder.done]
    failed = []
    with (
        tqdm(total=len(folders), initial=len(folders) - len(open_runs), unit="run", desc=name) as bar,
        ThreadPoolExecutor(jobs) as pool,
    ):
        running = {pool.submit(_run, folder.path): folder for folder in open_runs}
        try:
            for future in as_completed(running):
                bar.update()
                if future.result():
                    failed.append(running[future].path)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)  # the runs got the signal too
            raise
    if failed:
        tails = "\n".join(f"  {path}: {_last_line(path)}" for path in failed)
        raise RunError(f"{len(failed)} of {len(folders)} runs failed (details in their log.txt):\n{tails}")
    return [folder.path for folder in folders]


def _run(path: Path) -> int:
    """One run in a process of its own; its output goes to log.txt."""
    with (path / "log.txt").open("ab") as log:
        command = [sys.executable, "-m", "k24lab", "resume", str(path)]
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode


def _last_line(path: Path) -> str:
    lines = (path / "log.txt").read_text(errors="replace").splitlines()
    return lines[-1] if lines else "no output"
