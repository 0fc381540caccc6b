"""Runs of the study and their summaries: what is committed in figures/ is not trained again, in any checkout."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from k24lab.analysis.export import run_lines
from k24lab.analysis.load import RETURN, load_metrics, load_summaries
from k24lab.errors import RunError
from k24lab.lab.backends import Backend
from k24lab.lab.config import Config
from k24lab.lab.files import atomic_write
from k24lab.lab.find_runs import find_runs, read_json
from k24lab.lab.grid import Grid
from k24lab.lab.importer import import_runs
from k24lab.lab.paths import runs_dir
from k24lab.lab.runs import FAILED, run_folder
from k24lab.lab.sweep import sweep


def train(group: str, configs: Sequence[Config], backend: Backend, file: Path) -> None:
    """Train the runs of a group that are not finished, and write the summaries of all that are."""
    try:
        sweep(Grid(group, list(configs)), backend)
    except RunError as error:  # runs whose training failed; the others go on
        print(error)
    finally:
        collect(group, file)


def collect(group: str, file: Path) -> None:
    """Write the summaries of a group's finished runs."""
    if not any(runs_dir().glob(f"{group}/*/DONE")):
        return
    runs = [run for run in find_runs(group, finished_only=False) if run.finished]
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as opened:
        opened.write(run_lines(load_metrics(runs), load_summaries(runs)).encode())


def restore(group: str, file: Path) -> None:
    """Make run folders of the summaries that are there; what is finished stays as it is."""
    if file.is_file():
        import_runs([file], group)


def final_return(config: Config, group: str) -> float:
    """The last test of a run; NaN if it has not ended, and below all others if its training failed."""
    folder = run_folder(config, group)
    if (folder / FAILED).exists():
        return -np.inf
    return float(read_json(folder / "summary.json")[RETURN]) if (folder / "DONE").exists() else np.nan
