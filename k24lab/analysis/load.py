"""Read what runs wrote into tidy tables and arrays; changes nothing on disk."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8

from k24lab.errors import RunError, warn
from k24lab.lab.find_runs import Run, find_runs, read_json, variants

RETURN = "test_return_mean"  # mean return of the greedy team over an evaluation's episodes


@dataclass(frozen=True)
class Patterns:
    """The masks of one layer at one time."""

    index: UInt8[np.ndarray, "M *groups"]  # pattern chosen per group of four weights, 0..5
    probs: Float[np.ndarray, "M *groups 6"]  # softmax(z / temperature)


def load_metrics(runs: Sequence[Run] | str | Path) -> pd.DataFrame:
    """One row per logged line: `run`, `variant`, every config field, `t_env` (env steps) and the metrics.

    `runs` is what `find_runs` returns, or the name or folder of a group, whose finished runs are read. A metric that a
    line lacks is NaN. A config field with the name of a metric becomes `config_<field>`. Torn lines are skipped (see
    `metric_rows`).

    Raises:
        RunError: no run, something that is no run, no metrics in any of them, or whatever `find_runs` refuses.

    Examples:
        >>> import k24lab
        >>> config = k24lab.build_config(task="rolenav", t_max=400, test_episodes=10)  # too short to learn
        >>> run = k24lab.train(config, name="doc", progress=False)
        >>> metrics = k24lab.load_metrics(k24lab.find_runs("doc"))
        >>> metrics["task"].unique().tolist(), "test_return_mean" in metrics
        (['rolenav'], True)
    """
    runs = find_runs(runs) if isinstance(runs, str | Path) else runs
    wrong = [run for run in runs if not isinstance(run, Run)]
    if wrong or not runs:
        found = f"runs holds {wrong[0]!r}" if wrong else "runs is empty"
        raise RunError(f"{found}, expected what k24lab.find_runs returns, or the name of a group")
    rows = [{"run": str(run.path), **row} for run in runs for row in metric_rows(run.path / "metrics.jsonl")]
    if not rows:
        named = ", ".join(run.id for run in runs[:3]) + (", ..." if len(runs) > 3 else "")
        raise RunError(f"no metrics in {len(runs)} runs ({named})")
    return _join_configs(runs, pd.DataFrame(rows))


def load_summaries(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run: `run`, `variant`, every config field and the final numbers of summary.json, NaN if absent."""
    paths = {run.path: run.path / "summary.json" for run in runs}
    rows = [{"run": str(run)} | (read_json(path) if path.is_file() else {}) for run, path in paths.items()]
    return _join_configs(runs, pd.DataFrame(rows))


def _join_configs(runs: Sequence[Run], frame: pd.DataFrame) -> pd.DataFrame:
    """Add the config fields to rows that carry the run's path in `run`; then shorten that to the run's id."""
    configs = pd.DataFrame([{"run": str(run.path), **run.config} for run in runs])
    configs.insert(1, "variant", variants(runs))
    clashes = {key: f"config_{key}" for key in configs.columns.intersection(frame.columns) if key != "run"}
    joined = configs.rename(columns=clashes).merge(frame, on="run", validate="one_to_many")
    return joined.assign(run=joined["run"].map(lambda path: Path(path).name))


def metric_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl without their null values, each with t_env (else a `RunError`).

    A torn last line is what a killed or still running process leaves: skipped. One in the middle is skipped with a
    `RunWarning` that names file and line.
    """
    if not path.is_file():
        raise RunError(f"{path} does not exist")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            if row.get("t_env") is None:
                raise RunError(f"{path}:{number} has no t_env")
            rows.append({key: value for key, value in row.items() if value is not None})
        elif number < len(lines):
            warn(f"{path}:{number} is not a whole JSON object and is skipped")
    return rows


def load_patterns(run: Run) -> dict[int, dict[str, Patterns]]:
    """Snapshots of the masks in time order: t_env (env steps) -> layer -> `Patterns` of shape [M, out, G]."""
    return {t_env: read_patterns(path) for t_env, path in snapshot_paths(run).items()}


def last_patterns(run: Run) -> dict[str, Patterns]:
    """The masks at the end of training, as in `load_patterns`."""
    return read_patterns(list(snapshot_paths(run).values())[-1])


def has_patterns(run: Run) -> bool:
    """Whether a run has stored masks: methods without masks and imported runs have none."""
    return any((run.path / "patterns").glob("[0-9]*.npz"))


def snapshot_paths(run: Run) -> dict[int, Path]:
    """Files of the masks in time order: t_env (env steps) -> path; a run without, as of `fups`, is a `RunError`."""
    paths = sorted((run.path / "patterns").glob("[0-9]*.npz"), key=lambda path: int(path.stem))
    if not paths:
        raise RunError(f"{run.path} has no mask snapshots: method {run.config.get('method')!r} may have no masks")
    return {int(path.stem): path for path in paths}


def read_patterns(path: Path) -> dict[str, Patterns]:
    """One snapshot: layer -> `Patterns` of shape [M, out, G]; a damaged file is a `RunError`."""
    with _arrays(path) as arrays:
        layers = dict.fromkeys(key.partition("/")[0] for key in arrays.files)
        return {
            layer: Patterns(
                arrays[f"{layer}/pattern_index"].astype(np.uint8), arrays[f"{layer}/pattern_probs"].astype(np.float32)
            )
            for layer in layers
        }


def load_policies(run: Run) -> tuple[Float[np.ndarray, "K S A"], Bool[np.ndarray, "S A"]]:
    """Q-values of all agents on common observations, and the available actions, as they were at the end of training."""
    path = run.path / "policy.npz"
    if not path.is_file():
        raise RunError(f"{path} does not exist: it is written when a run finishes")
    with _arrays(path) as arrays:
        return arrays["q_values"].astype(np.float64), arrays["avail_actions"].astype(bool)


@contextlib.contextmanager
def _arrays(path: Path) -> Iterator[Any]:
    """The arrays of an npz file; whatever its damage leads to is one error."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            yield arrays
    except Exception as error:
        raise RunError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def mask_names(run: Run) -> list[str]:
    """Whose masks (or separate networks) a run has: names of unit types with mask_per "type", else agents' indices."""
    names = read_json(run.path / "summary.json").get("unit_type_names") if run.finished else None
    if run.config.get("mask_per") == "type" and names:
        return [str(name) for name in names]
    return [str(index) for index in range(len(load_policies(run)[0]))]
