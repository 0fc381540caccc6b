"""Run folders from the raw summaries that come with figures: results of others beside one's own, without training."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from k24lab.errors import ConfigError, RunError
from k24lab.lab import provenance
from k24lab.lab.config import Config, stored_config
from k24lab.lab.files import atomic_write
from k24lab.lab.paths import runs_dir
from k24lab.lab.runs import CHECKPOINT, RunFolder, check_name, read_config

FIELDS = [field.name for field in dataclasses.fields(Config)]
SERIES = ("evaluations", "training")
Line = Mapping[str, Any]


def import_runs(files: Sequence[Path], name: str | None = None) -> list[Path]:
    """Make run folders of the lines of `*_runs.jsonl` files (`k24lab.analysis.export.run_lines`).

    A folder has configuration, evaluations, final numbers and what of the training was kept, so every figure of returns
    can be drawn; masks, policies and checkpoints are not there. A run that is there already, finished or with a
    checkpoint, stays as it is.

    Args:
        files: raw summaries.
        name: group of the runs; by default that of a file is `<its folder>_runs`.

    Raises:
        ConfigError: a name that cannot be that of a folder.
        RunError: a file or line that cannot be used, or a folder that holds another run: nothing is written then. Or a
            process that trains one of the runs.
    """
    if not files:
        raise RunError("name at least one file of raw summaries, e.g. figures/rolenav3/05_ablations_runs.jsonl")
    lines: dict[Path, Line] = {}
    runs: list[tuple[Path, Config, Path]] = []
    for file in files:
        group = check_name(f"{file.resolve().parent.name}_runs" if name is None else name)
        for where, line in _lines(file):
            config = _config(line, where)
            folder = runs_dir() / group / str(line["run"])
            if lines.setdefault(folder, line) != line:
                raise RunError(f"{', '.join(map(str, files))}: lines that differ for run {folder.name}")
            if (folder / "config.json").exists() and read_config(folder) != config:
                raise RunError(f"{folder} holds a run with other settings: import under another --name")
            runs.append((folder, config, file))
    for folder, config, file in runs:
        run = RunFolder(folder, config)
        if not (run.done or (folder / CHECKPOINT).exists()):
            with run.attempt():
                provenance.record_import(folder, file)
                _write(run, lines[folder])
    return [folder for folder, *_ in runs]


def _lines(path: Path) -> list[tuple[str, Line]]:
    """Every line of a file, with its place for errors."""
    if not path.is_file():
        raise RunError(f"{path} does not exist; notebook 05_ablations writes them as <runs>/05_ablations_runs.jsonl")
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            line = json.loads(text)
        except ValueError as error:
            raise RunError(f"{where} is not valid JSON: {error}") from error
        _check_line(line, where)
        lines.append((where, line))
    if not lines:
        raise RunError(f"{path} is empty")
    return lines


def _check_line(line: object, where: str) -> None:
    """Refuse what no run can be made of."""
    if not isinstance(line, dict) or not {"run", "task", "method", "seed", "evaluations"} <= line.keys():
        raise RunError(f"{where} is no raw summary: it must be an object with run, task, method, seed, evaluations")
    check_name(str(line["run"]))
    for key in line.keys() & SERIES:
        columns = list(line[key].values()) if isinstance(line[key], dict) else [None]
        lengths = {len(column) if isinstance(column, list) else None for column in columns}
        if columns and (len(lengths) != 1 or None in lengths or "t_env" not in line[key]):
            raise RunError(f"{where}: {key} must be lists of one length, t_env among them")
        if any(type(number) not in (int, float, NoneType) for column in columns for number in column or ()):
            raise RunError(f"{where}: {key} holds something that is no number")
        if any(type(t_env) is not int for t_env in (line[key]["t_env"] if columns else ())):
            raise RunError(f"{where}: t_env of {key} must be whole numbers")


def _config(line: Line, where: str) -> Config:
    """The configuration in a line; a field with the name of a metric stands there as `config_<field>`."""
    fields = {key: line.get(f"config_{key}", line.get(key)) for key in FIELDS if key in line or f"config_{key}" in line}
    try:
        return stored_config(fields)
    except ConfigError as error:
        raise RunError(f"{where} cannot be used: {error}") from error


def _write(run: RunFolder, line: Line) -> None:
    """Metrics and summary of a line; its other entries are settings, or metrics with the names of settings."""
    series = [line[key] for key in sorted(line.keys() & SERIES)]
    rows = [dict(zip(each, values, strict=True)) for each in series for values in zip(*each.values(), strict=True)]
    with atomic_write(run.path / "metrics.jsonl") as file:
        file.write("".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["t_env"])).encode())
    settings = {f"config_{key}" if f"config_{key}" in line else key for key in FIELDS}
    run.finish({key: value for key, value in line.items() if key not in {"run", "variant", *SERIES, *settings}})
