"""Running the notebooks as a batch does: checked parameters, this interpreter, no half-written results."""

import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import papermill
import yaml
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError
from traitlets import default

from k24lab.analysis.aggregate import complete_returns
from k24lab.analysis.find_runs import find_groups, find_runs
from k24lab.analysis.load import load_summaries
from k24lab.errors import ConfigError, RunError, unknown
from k24lab.lab.config import Config, build_config, merge_settings
from k24lab.lab.paths import notebooks_dir, project_root
from k24lab.lab.runs import canonical, read_config
from k24lab.lab.yamlfile import load_yaml

# Those that draw figures of runs, or of the method itself; 02_train and 11_look make a run, which nobody asked for.
DEFAULT_NOTEBOOKS = (
    "01_masks",
    "03_mask_patterns",
    "04_agent_similarity",
    "05_ablations",
    "06_ampere_speedup",
)
DEFAULT_GROUP = "demo"
KERNEL_FOLDER = "k24lab-kernel-"  # begins the names of folders for the sockets of kernels
LONGEST_FOLDER = 90  # characters: the system allows 107 in the path of a socket, and clusters have long TMPDIRs


class ThisInterpreter(AsyncKernelManager):
    """Kernels of the running interpreter, whatever kernel spec named python3 the user has installed.

    They are reached through sockets in a folder of their own: kernels that start side by side can race for TCP ports.
    IPython's files go there as well: a home that cannot be written, or a user's startup files, change nothing.
    """

    @default("transport")
    def _transport_default(self) -> str:
        return "ipc"

    @default("ip")
    def _ip_default(self) -> str:
        folder = Path(tempfile.mkdtemp(prefix=KERNEL_FOLDER))
        if len(str(folder)) > LONGEST_FOLDER:
            folder.rmdir()
            folder = Path(tempfile.mkdtemp(prefix=KERNEL_FOLDER, dir="/tmp"))
        return str(folder / "socket")

    def cleanup_ipc_files(self) -> None:
        """Remove the sockets and their folder."""
        super().cleanup_ipc_files()
        shutil.rmtree(Path(self.ip).parent, ignore_errors=True)

    @property
    def kernel_spec(self) -> KernelSpec:
        """`python -m ipykernel_launcher` of this environment."""
        # Errors of cells are in the notebook; the kernel's own log calls the end of an idle kernel an error.
        command = [sys.executable, "-m", "ipykernel_launcher", "--log-level=CRITICAL", "-f", "{connection_file}"]
        own = {"IPYTHONDIR": str(Path(self.ip).parent / "ipython")}
        return KernelSpec(argv=command, env=own, display_name="Python 3", language="python")


def notebook_path(name: str) -> Path:
    """Path of a notebook by its name, with or without `.ipynb`.

    Raises:
        ConfigError: no such notebook.
    """
    folder = notebooks_dir()
    path = folder / f"{name.removesuffix('.ipynb')}.ipynb"
    if not path.is_file():
        raise ConfigError(unknown("notebook", name, [p.stem for p in folder.glob("*.ipynb")]))
    return path


def check_notebook(name: object) -> None:
    """Refuse a notebook that cannot be the target of a grid: it must take `name` and `overrides`.

    Raises:
        ConfigError: no such notebook, or one without these parameters.
    """
    if not isinstance(name, str):
        raise ConfigError(f"notebook = {name!r} must be the name of a notebook, e.g. 02_train")
    missing = {"name", "overrides"} - parameter_names(name)
    if missing:
        raise ConfigError(f"notebook {name!r} takes no parameter {' or '.join(sorted(missing))}: no run can be its job")


def execute_run(folder: Path, name: str) -> Path:
    """Train the run of a folder inside a notebook; the executed copy is kept in the run folder.

    Fields that the notebook has a parameter for go there, all others that are no default into `overrides`.

    Raises:
        RunError: no run folder, one whose task is spelt as no new run's would be, or a cell failed.
    """
    config = read_config(folder)
    fields, allowed = dataclasses.asdict(config), parameter_names(name)
    own = {key: value for key, value in fields.items() if key in allowed}
    chosen = {key: fields[key] for key in ("method", "learner") if fields[key] != getattr(Config, key)}
    defaults = dataclasses.asdict(build_config(chosen))
    overrides = {k: v for k, v in fields.items() if k not in allowed and (k in chosen or v != defaults[k])}
    if canonical(merge_settings(own, overrides)) != config:
        raise RunError(
            f"{folder}: {name} would train another run, since task = {config.task!r} is spelt differently today; "
            f"`k24lab resume {folder.name}` without a notebook goes on with it"
        )
    parameters = own | {"overrides": overrides, "name": folder.parent.name}
    return _execute(notebook_path(name), parameters, folder, notebook_path(name).stem)


def execute_all(
    names: Sequence[str], runs: str | None, jobs: int, parameters: Mapping[str, Any] | None = None
) -> list[Path]:
    """Run notebooks side by side, each in a kernel of its own.

    No notebook depends on its working folder, which threads of one process share.

    Args:
        names: notebooks; none: `DEFAULT_NOTEBOOKS`.
        runs: group for those that read one (None: demo); one that is named and reads none is refused.
        jobs: notebooks at a time.
        parameters: values for the parameters cells of all of them.

    Raises:
        ConfigError: no such notebook, or one that does not have one of the parameters, or `runs` in both.
        RunError: a notebook failed (the others are finished first).
    """
    given = dict(parameters or {})
    if runs is not None and given.get("runs", runs) != runs:
        raise ConfigError(f"given twice: runs = {runs!r} (--runs) and {given['runs']!r} (--parameters)")
    tasks = []
    for name in names or DEFAULT_NOTEBOOKS:
        allowed = parameter_names(name)
        if names and runs is not None and "runs" not in allowed:
            raise ConfigError(f"{notebook_path(name).name} takes no runs = {runs!r}{_other_sources(allowed)}")
        _check_parameters(name, given, allowed)
        group = {"runs": runs or DEFAULT_GROUP} if "runs" in allowed else {}
        values = group | given
        tasks.append((name, values, str(values["runs"]) if group else ""))
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(execute, *task) for task in tasks]
    return [future.result() for future in futures]


def _other_sources(allowed: Collection[str]) -> str:
    """Where a notebook without the parameter `runs` has its runs from."""
    if "groups" in allowed:
        return ": it takes groups, e.g. --parameters groups '[demo]'"
    return f" (allowed: {', '.join(sorted(allowed))})"


def parse_parameters(texts: Mapping[str, str]) -> dict[str, Any]:
    """Values of a command line as YAML reads them: `[a, b]` is a list.

    Raises:
        ConfigError: a text that is no YAML.
    """
    values = {}
    for key, text in texts.items():
        try:
            values[key] = load_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{key} = {text!r} is not a value in YAML: {' '.join(str(error).split())}") from error
        except ConfigError as error:
            raise ConfigError(f"{key} = {text!r}: {error}") from None
    return values


def _check_parameters(name: str, parameters: Mapping[str, Any], allowed: set[str]) -> None:
    for key in parameters.keys() - allowed:
        raise ConfigError(f"{notebook_path(name).name}: " + unknown("parameter", key, allowed))


def paper_figures(groups: Sequence[str], jobs: int, variant: str | None, figures: str) -> list[Path]:
    """Every figure that can be drawn from groups of runs, of each group and of all together; nothing is trained.

    `variant` (None: k24, or else the first that can be) is compared with all others; `figures` begins the names of the
    files over all groups.

    Raises:
        RunError: a group without finished runs, no (or not that) variant with runs in all tasks, a failed notebook.
    """
    comparable = complete_returns(load_summaries(find_groups(groups)), variant)
    if variant is None:
        variant = "k24" if "k24" in comparable else next(iter(comparable))
    tasks: list[tuple[str, dict[str, Any], str]] = []
    for group in groups:
        runs = find_runs(group)
        tasks.append(("05_ablations", {"runs": group}, group))
        masked = [str(run.config["method"]) for run in runs if (run.path / "patterns").is_dir()]
        if masked:
            one = {"runs": group, "method": "k24" if "k24" in masked else masked[0]}
            tasks += [(name, one, group) for name in ("03_mask_patterns", "04_agent_similarity")]
        if any(run.config.get("mask_per") == "type" for run in runs):
            tasks.append(("07_unit_types", {"runs": group}, group))
    tasks.append(("08_paper_figures", {"groups": list(groups), "variant": variant, "figures": figures}, figures))
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(execute, *task) for task in tasks]
    return [future.result() for future in futures]


def parameter_names(name: str) -> set[str]:
    """Names in a notebook's parameters cell.

    Raises:
        ConfigError: no such notebook, or none that papermill can read.
    """
    path = notebook_path(name)
    try:
        return set(papermill.inspect_notebook(str(path)))
    except Exception as error:  # no JSON, no notebook, no kernel named in it: each has an error of its own
        raise ConfigError(f"{path} cannot be read as a notebook: {error}") from error


def execute(name: str, parameters: Mapping[str, Any], label: str = "") -> Path:
    """Run a notebook with papermill and keep the executed copy in `executed/`.

    Args:
        name: of the notebook.
        parameters: values for its parameters cell.
        label: distinguishes executed copies of the same notebook.

    Returns:
        The executed notebook.

    Raises:
        ConfigError: a parameter that the notebook does not have.
        RunError: a cell failed; the copy with the error is kept as `.failed.ipynb`.
    """
    source = notebook_path(name)
    _check_parameters(name, parameters, parameter_names(name))
    stem = f"{source.stem}-{label}" if label else source.stem
    return _execute(source, parameters, project_root() / "executed", stem)


def executed_copies(folder: Path, name: str) -> tuple[Path, Path]:
    """Where the executed copy of a notebook lies: one whose cells have all run, and one of which a cell failed."""
    stem = name.removesuffix(".ipynb")
    return folder / f"{stem}.ipynb", folder / f"{stem}.failed.ipynb"


def _execute(source: Path, parameters: Mapping[str, Any], folder: Path, stem: str) -> Path:
    """Run a notebook; only a clean copy gets the name `stem`."""
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
