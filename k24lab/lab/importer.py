"""Run folders from the raw summaries that come with figures: results of others beside one's own, without training."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from k24lab.errors import ConfigError, RunError
from k24lab.lab import provenance
from k24lab.lab.config import Config, stored_config
from k24lab.lab.files import atomic_write
from k24lab.lab.paths import runs_dir
from k24lab.lab.runs import CHECKPOINT, RunFolder, check_name, read_config

SERIES = ("evaluations", "training")


class Run(NamedTuple):
    """What a line says of a run."""

    id: str
    config: Config
    rows: list[dict[str, Any]]  # of the metrics file
    summary: dict[str, Any]


def import_runs(files: Sequence[Path], name: str | None = None) -> list[Path]:
    """Make run folders of the lines of `*_runs.jsonl` files (`k24lab.analysis.export.run_lines`).

    Every figure of returns can be drawn from them; masks, policies and checkpoints are not there. A run that is there
    already, finished or with a checkpoint, stays as it is. Their group is `name`, or else `<folder of the file>_runs`.

    Raises:
        ConfigError: a name that cannot be that of a folder.
        RunError: a file or line that cannot be used, or a folder that holds another run: nothing is written then. Or a
            process that trains one of the runs.
    """
    if not files:
        raise RunError("name at least one file of raw summaries, e.g. figures/rolenav3/05_ablations_runs.jsonl")
    runs: dict[Path, tuple[Run, Path]] = {}
    for file in files:
        group = check_name(f"{file.resolve().parent.name}_runs" if name is None else name)
        for run in _runs(file):
            folder = runs_dir() / group / run.id
            if runs.setdefault(folder, (run, file))[0] != run:
                raise RunError(f"{', '.join(map(str, files))}: lines that differ for run {run.id}")
            if (folder / "config.json").exists() and read_config(folder) != run.config:
                raise RunError(f"{folder} holds a run with other settings: import under another --name")
    if not runs:
        raise RunError(f"{', '.join(map(str, files))}: no line, and so no run")
    for path, (found, file) in runs.items():
        target = RunFolder(path, found.config)
        if not (target.done or (path / CHECKPOINT).exists()):
            with target.attempt():
                provenance.append(path, {"imported": file.name})  # it was not trained here
                with atomic_write(path / "metrics.jsonl") as metrics:
                    metrics.write("".join(json.dumps(row) + "\n" for row in found.rows).encode())
                target.finish(found.summary)
    return list(runs)


def _runs(path: Path) -> Iterator[Run]:
    """The run of every line of a file."""
    if not path.is_file():
        raise RunError(f"{path} does not exist; notebook 05_ablations writes them as <runs>/05_ablations_runs.jsonl")
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            yield _run(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise RunError(f"{path}:{number} is no raw summary of a run: {type(error).__name__}: {error}") from error


def _run(line: Mapping[str, Any]) -> Run:
    """A line; a setting with the name of a metric stands there as `config_<field>`."""
    own = {field.name: f"config_{field.name}" for field in dataclasses.fields(Config)}
    own = {key: long if long in line else key for key, long in own.items() if long in line or key in line}
    config = stored_config({key: line[stored] for key, stored in own.items()})
    if not {"task", "method", "seed"} <= own.keys():
        raise ValueError("task, method or seed is missing")
    rows = []
    for series in ("evaluations", *({"training"} & line.keys())):
        for values in zip(*line[series].values(), strict=True):
            row = dict(zip(line[series], values, strict=True))
            if type(row["t_env"]) is not int or any(type(value) not in (int, float, NoneType) for value in values):
                raise ValueError(f"{series} holds something that is no number, or a t_env that is no whole one")
            rows.append(row)
    summary = {key: v for key, v in line.items() if key not in {"run", "variant", *SERIES, *own.values()}}
    return Run(check_name(str(line["run"])), config, sorted(rows, key=lambda row: row["t_env"]), summary)
