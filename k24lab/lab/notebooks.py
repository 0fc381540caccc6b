"""Notebooks executed as a batch: checked parameters, this interpreter, no half-written results."""

import dataclasses
import shutil
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from k24lab.errors import ConfigError, RunError, unknown
from k24lab.lab.config import Config, build_config
from k24lab.lab.paths import SHIPPED, notebook_folders, project_root
from k24lab.lab.runs import read_config
from k24lab.lab.yamlfile import load_yaml

# Those that draw figures of runs, or of the method itself; 02_train and 11_look would train a run.
DEFAULT_NOTEBOOKS = ("01_masks", "03_mask_patterns", "04_agent_similarity", "05_ablations", "06_ampere_speedup")
DEFAULT_GROUP = "demo"
Task = tuple[str, dict[str, Any], str]  # a notebook, its parameters, and the label of the executed copy


def notebook_path(name: str) -> Path:
    """Path of a notebook by its name, with or without `.ipynb`. Raises ConfigError: no such notebook."""
    found = {path.stem: path for folder in reversed(notebook_folders()) for path in folder.glob("*.ipynb")}
    stem = name.removesuffix(".ipynb")
    if stem not in found:
        raise ConfigError(unknown("notebook", name, found))
    return found[stem]


def copy_notebooks(folder: Path) -> Path:
    """Copy the notebooks and grids of the package into a new folder, to open and change them there."""
    if folder.exists():
        raise ConfigError(f"{folder} is there already: name a new folder for the copies")
    return shutil.copytree(SHIPPED / "notebooks", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__", ".*"))


def import_papermill() -> Any:
    """The package papermill; raises ConfigError if it is not installed."""
    try:
        import papermill
    except ImportError as error:
        raise ConfigError(f"notebooks need their extra: pip install 'k24lab[notebooks]' ({error})") from error
    return papermill


def parameter_names(name: str, needed: Collection[str] = ()) -> set[str]:
    """Names in a notebook's parameters cell.

    Raises:
        ConfigError: no such notebook, none that papermill can read, or one without a parameter that is needed.
    """
    papermill, path = import_papermill(), notebook_path(name)
    try:
        allowed = set(papermill.inspect_notebook(str(path)))
    except Exception as error:  # no JSON, no notebook, no kernel named in it: each has an error of its own
        raise ConfigError(f"{path} cannot be read as a notebook: {error}") from error
    for key in set(needed) - allowed:
        raise ConfigError(f"{path.name}: " + unknown("parameter", key, allowed))
    return allowed


def parse_parameters(texts: Mapping[str, str]) -> dict[str, Any]:
    """Values of a command line as YAML reads them: `[a, b]` is a list. Raises ConfigError: a text that is no YAML."""
    values = {}
    for key, text in texts.items():
        try:
            values[key] = load_yaml(text)
        except (yaml.YAMLError, ConfigError) as error:
            raise ConfigError(f"{key} = {text!r} is not a value in YAML: {' '.join(str(error).split())}") from error
    return values


def execute_all(
    names: Sequence[str], runs: str | None, jobs: int, parameters: Mapping[str, Any] | None = None
) -> list[Path]:
    """Execute notebooks (by default DEFAULT_NOTEBOOKS), `jobs` at a time, with the same parameters.

    `runs` is the group for those that read one (None: demo); a notebook that is named and reads none is refused.
    """
    given = dict(parameters or {})
    if runs is not None and given.setdefault("runs", runs) != runs:
        raise ConfigError(f"given twice: runs = {runs!r} (--runs) and {given['runs']!r} (--parameters)")
    tasks: list[Task] = []
    for name in names or DEFAULT_NOTEBOOKS:
        allowed = parameter_names(name)
        own = given if names else {key: value for key, value in given.items() if key in allowed or key != "runs"}
        values = ({"runs": DEFAULT_GROUP} if "runs" in allowed else {}) | own
        parameter_names(name, values)
        tasks.append((name, values, str(values.get("runs", ""))))
    return execute_side_by_side(tasks, jobs)


def execute_side_by_side(tasks: Sequence[Task], jobs: int) -> list[Path]:
    """`execute` for several notebooks, each in a kernel of its own; an error is raised once all have ended.

    No notebook depends on its working folder, which threads of one process share.
    """
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(execute, *task) for task in tasks]
    return [future.result() for future in futures]


def execute(name: str, parameters: Mapping[str, Any], label: str = "") -> Path:
    """Run a notebook with papermill and keep the executed copy in `executed/`; `label` tells copies apart.

    Raises:
        RunError: a cell failed; the copy with the error is kept as `.failed.ipynb`.
    """
    source = notebook_path(name)
    parameter_names(name, parameters)
    return _execute(source, parameters, project_root() / "executed", f"{source.stem}-{label}" if label else source.stem)


def execute_run(folder: Path, name: str) -> Path:
    """Train the run of a folder inside a notebook; the executed copy is kept in the run folder.

    Fields that the notebook has a parameter for go there, all others that are no default into `overrides`.
    """
    config = read_config(folder)
    fields, allowed = dataclasses.asdict(config), parameter_names(name)
    own = {key: value for key, value in fields.items() if key in allowed}
    chosen = {key: fields[key] for key in ("method", "learner") if fields[key] != getattr(Config, key)}
    defaults = dataclasses.asdict(build_config(chosen))
    overrides = {k: v for k, v in fields.items() if k not in allowed and (k in chosen or v != defaults[k])}
    parameters = own | {"overrides": overrides, "name": folder.parent.name}
    return _execute(notebook_path(name), parameters, folder, notebook_path(name).stem)


def executed_copies(folder: Path, name: str) -> tuple[Path, Path]:
    """Where the executed copy of a notebook lies: one whose cells have all run, and one of which a cell failed."""
    stem = name.removesuffix(".ipynb")
    return folder / f"{stem}.ipynb", folder / f"{stem}.failed.ipynb"


def _execute(source: Path, parameters: Mapping[str, Any], folder: Path, stem: str) -> Path:
    """Run a notebook; only a copy whose cells have all run gets the name `stem`."""
    papermill = import_papermill()
    from papermill.exceptions import PapermillExecutionError

    from k24lab.lab.notebook_kernel import ThisInterpreter

    folder.mkdir(exist_ok=True)
    part = folder / f"{stem}.part.ipynb"
    whole, failed = executed_copies(folder, stem)
    failed.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(
            str(source),
            str(part),
            parameters=dict(parameters),
            kernel_name="python3",
            progress_bar=False,
            coalesce_streams=True,
            kernel_manager_class=ThisInterpreter,
        )
    except Exception as error:
        if part.exists():
            part.replace(failed)
        # What papermill says is the whole cell and its traceback, which the copy shows better.
        said = f"{error.ename}: {error.evalue}" if isinstance(error, PapermillExecutionError) else str(error)
        raise RunError(f"{source.name} failed, see {failed}: {said}") from error
    part.replace(whole)
    return whole
