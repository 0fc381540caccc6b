"""Read run folders into tidy DataFrames and arrays; needs no torch and changes nothing on disk."""

import contextlib
import dataclasses
import functools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8

from k24lab.envs.tasks import spelt
from k24lab.errors import ConfigError, RunError, unknown, warn
from k24lab.lab.config import NOT_HASHED, build_config
from k24lab.lab.paths import runs_dir
from k24lab.lab.unused_settings import unused_fields, used_fields
from k24lab.methods import METHODS

# Fields that say where a run computes and how often it writes, not what is learned.
NOT_A_VARIANT = NOT_HASHED | {"device", "log_interval", "checkpoint_interval", "snapshot_interval"}


@dataclass(frozen=True)
class Run:
    """One run folder: `runs/<group>/<run_id>`."""

    path: Path
    config: dict[str, Any]
    finished: bool

    @property
    def id(self) -> str:
        """Folder name, unique within the group."""
        return self.path.name


@dataclass(frozen=True)
class Patterns:
    """The masks of one layer at one time."""

    index: UInt8[np.ndarray, "M *groups"]  # pattern chosen per group of four weights, 0..5
    probs: Float[np.ndarray, "M *groups 6"]  # softmax(z / temperature)


@dataclass(frozen=True)
class Policies:
    """What K agents' policies say about the same S observations."""

    q_values: Float[np.ndarray, "K S A"]
    avail_actions: Bool[np.ndarray, "S A"]


def find_runs(source: str | Path, *, finished_only: bool = True, **filters: object) -> list[Run]:
    """Runs of a group (`"demo"` stands for `runs_dir()/demo`) or of a folder (a Path), sorted by folder name.

    A filter is a config field with one value or a list of allowed ones (`method=["k24", "nops"]`); None allows all.
    Unfinished runs (no DONE file) are left out, and of runs with the same config only the newest finished one stays;
    a `RunWarning` says how many went.

    Raises:
        RunError: no such folder, no runs in it, none finished, none that passes the filters, an unknown field.
    """
    folder = source if isinstance(source, Path) else runs_dir() / source
    runs = [read_run(path.parent) for path in sorted(folder.glob("*/config.json"))]
    if not runs:
        raise RunError(no_runs(folder))
    runs = unique_runs(_filter(runs, {k: v for k, v in filters.items() if v is not None}, folder), folder)
    if not finished_only:
        return runs
    finished = [run for run in runs if run.finished]
    if not finished:
        raise RunError(f"none of the {len(runs)} runs in {folder} is finished (finished_only=False reads them anyway)")
    if len(finished) < len(runs):
        warn(f"{len(runs) - len(finished)} of {len(runs)} runs in {folder} are unfinished and left out")
    return finished


def find_run(source: str | Path, **filters: object) -> Run:
    """The run of `find_runs` that stands for its group: as near to the method's own settings as any, least seed.

    Raises:
        RunError: as `find_runs`.
    """
    runs = find_runs(source, finished_only=True, **filters)
    runs = [run for run in runs if run.config["task"] == runs[0].config["task"]]
    departures = [len(name.split()) for name in variants(runs)]
    return min(zip(departures, runs, strict=True), key=lambda pair: (pair[0], pair[1].config["seed"], pair[1].id))[1]


def load_metrics(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per logged line: `run`, `variant`, every config field, `t_env` (env steps) and the metrics.

    A metric that a line lacks is NaN. A config field with the name of a metric becomes `config_<field>`. Torn lines are
    skipped (see `_read_lines`).

    Raises:
        RunError: a run without metrics.jsonl, or a line without t_env.
    """
    rows = [{"run": str(run.path), **row} for run in runs for row in metric_rows(run.path / "metrics.jsonl")]
    if not rows:
        raise RunError(f"no metrics in {len(runs)} runs ({', '.join(run.id for run in runs[:3])} ...)")
    return _join_configs(runs, pd.DataFrame(rows))


def load_summaries(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run: `run`, `variant`, every config field and the final numbers of summary.json, NaN if absent.

    Raises:
        RunError: a summary.json that is not a JSON object.
    """
    rows = []
    for run in runs:
        path = run.path / "summary.json"
        rows.append({"run": str(run.path), **(_read_object(path) if path.is_file() else {})})
    return _join_configs(runs, pd.DataFrame(rows))


def load_patterns(run: Run, last_only: bool = False) -> dict[int, dict[str, Patterns]]:
    """Snapshots of the masks in time order: t_env (env steps) -> layer -> `Patterns` of shape [M, out, G].

    `last_only` reads the last one alone.

    Raises:
        RunError: the run has no snapshots, as for methods without masks, or damaged ones.
    """
    paths = snapshot_paths(run)
    return {t_env: read_patterns(paths[t_env]) for t_env in list(paths)[-1 if last_only else 0 :]}


def snapshot_paths(run: Run) -> dict[int, Path]:
    """Files of the masks in time order: t_env (env steps) -> path.

    Raises:
        RunError: the run has none, as for methods without masks.
    """
    paths = sorted((run.path / "patterns").glob("[0-9]*.npz"), key=lambda path: int(path.stem))
    if not paths:
        raise RunError(f"{run.path} has no mask snapshots: method {run.config.get('method')!r} may have no masks")
    return {int(path.stem): path for path in paths}


def load_policies(run: Run) -> Policies:
    """Q-values of all agents on common observations, as written at the end of training.

    Raises:
        RunError: the run has no policy.npz, or a damaged one.
    """
    path = run.path / "policy.npz"
    if not path.is_file():
        raise RunError(f"{path} does not exist: it is written when a run finishes")
    with _arrays(path) as arrays:
        return Policies(arrays["q_values"].astype(np.float64), arrays["avail_actions"].astype(bool))


def mask_names(run: Run) -> list[str]:
    """Whose masks (or separate networks) a run has: names of unit types with mask_per = "type", else agents' indices.

    Raises:
        RunError: the run has neither summary nor policy.
    """
    names = _read_object(run.path / "summary.json").get("unit_type_names") if run.finished else None
    if run.config.get("mask_per") == "type" and names:
        return [str(name) for name in names]
    return [str(index) for index in range(len(load_policies(run).q_values))]


def kind(run: Run) -> str:
    """Whose masks a run has: "agent" or "unit type"."""
    return "unit type" if run.config.get("mask_per") == "type" else "agent"


def variants(runs: Sequence[Run]) -> list[str]:
    """A name per run under which seeds may be averaged: the method, and what makes it differ from others of its task.

    Fields that vary within task and method are named where they are not the method's default, or where most runs of the
    task share another value (a task's own mixer, say) not that one: `k24` beside `k24 hidden_dim=16 mask_rnn=False`.
    """
    values: dict[tuple[object, object], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for run in runs:
        for key in run.config:
            values[_family(run)][key].add(repr(run.config[key]))
    common = _common_settings(runs)
    deviations = [_deviations(run, _varying(values[_family(run)]), common[run.config.get("task")]) for run in runs]
    return [" ".join([str(run.config.get("method")), *named]) for run, named in zip(runs, deviations, strict=True)]


def _common_settings(runs: Sequence[Run]) -> dict[object, dict[str, object]]:
    """By task, the values that more than half of its runs share."""
    tasks: dict[object, list[Run]] = defaultdict(list)
    for run in runs:
        tasks[run.config.get("task")].append(run)
    common: dict[object, dict[str, object]] = {}
    for task, members in tasks.items():
        common[task] = {}
        for key in {key for run in members for key in run.config}:
            value, count = Counter(json.dumps(r.config[key]) for r in members if key in r.config).most_common(1)[0]
            if 2 * count > len(members):
                common[task][key] = json.loads(value)
    return common


def _deviations(run: Run, keys: Sequence[str], common: Mapping[str, object]) -> list[str]:
    method = str(run.config.get("method"))
    own = (
        METHODS[method].settings.keys() if method in METHODS else ()
    )  # what a method has of its own, the runs of others do not decide
    usual = default_settings(method, str(run.config.get("learner", "q"))) | {
        key: value for key, value in common.items() if key not in own
    }
    telling = [key for key in keys if key not in unused_fields(run.config)]
    return [f"{k}={run.config.get(k)}" for k in telling if k not in usual or run.config.get(k) != usual[k]]


@functools.cache
def default_settings(method: str, learner: str) -> dict[str, Any]:
    """Every setting of a method as the package has it; nothing for a method that it does not know."""
    try:
        return dataclasses.asdict(build_config({"method": method, "learner": learner}))
    except ConfigError:
        return {}


def _family(run: Run) -> tuple[object, object]:
    return run.config.get("task"), run.config.get("method")


def _varying(values: dict[str, set[str]]) -> list[str]:
    return sorted(key for key, seen in values.items() if len(seen) > 1 and key not in NOT_A_VARIANT | {"seed"})


def _join_configs(runs: Sequence[Run], frame: pd.DataFrame) -> pd.DataFrame:
    """Add the config fields to rows that carry the run's path in `run`; then shorten that to the run's id."""
    configs = pd.DataFrame([{"run": str(run.path), **run.config} for run in runs])
    configs.insert(1, "variant", variants(runs))
    clashes = {key: f"config_{key}" for key in configs.columns.intersection(frame.columns) if key != "run"}
    joined = configs.rename(columns=clashes).merge(frame, on="run", validate="one_to_many")
    return joined.assign(run=joined["run"].map(lambda path: Path(path).name))


def read_run(path: Path) -> Run:
    """The run of one folder, finished or not, its task spelt so that runs of one task have one; raises RunError."""
    config = _read_object(path / "config.json")
    if "task" in config:
        config["task"] = spelt(config["task"])
    return Run(path, config, (path / "DONE").is_file())


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} holds {type(value).__name__}, not a JSON object")
    return value


def metric_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, each with t_env; none, or one without t_env, is a `RunError`."""
    if not path.is_file():
        raise RunError(f"{path} does not exist")
    rows = dict(_read_lines(path))
    for number, row in rows.items():
        if "t_env" not in row:
            raise RunError(f"{path}:{number} has no t_env")
    return list(rows.values())


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each whole line; null values are left out.

    A torn last line is what a killed or still running process leaves: skipped. One in the middle is skipped with a
    `RunWarning` that names file and line.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield number, {key: value for key, value in row.items() if value is not None}
        elif number < len(lines):
            warn(f"{path}:{number} is not a whole JSON object and is skipped")


@contextlib.contextmanager
def _arrays(path: Path) -> Iterator[Any]:
    """The arrays of an npz file; whatever its damage leads to is one error."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            yield arrays
    except Exception as error:
        raise RunError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


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


def _filter(runs: list[Run], filters: dict[str, object], folder: Path) -> list[Run]:
    for key, wanted in filters.items():
        known = {field for run in runs for field in run.config}
        if key not in known:
            raise RunError(unknown("config field", key, known))
        allowed = list(wanted) if isinstance(wanted, Iterable) and not isinstance(wanted, str) else [wanted]
        allowed = [spelt(value) for value in allowed] if key == "task" else allowed
        kept = [run for run in runs if run.config.get(key) in allowed]
        if not kept:
            present = sorted({str(run.config.get(key)) for run in runs})
            raise RunError(f"no run in {folder} has {key} in {allowed} (there are: {', '.join(present)})")
        runs = kept
    return runs


def unique_runs(runs: list[Run], where: str | Path) -> list[Run]:
    """Of runs with the same config keep the finished one with the newest DONE (an older copy counts a seed twice)."""
    best: dict[str, Run] = {}
    for run in runs:
        used = used_fields(run.config)
        key = json.dumps({k: v for k, v in used.items() if k not in NOT_A_VARIANT}, sort_keys=True)
        if key not in best or _age(run) > _age(best[key]):
            best[key] = run
    if len(best) < len(runs):
        warn(f"{len(runs) - len(best)} of {len(runs)} runs in {where} repeat a config and are left out")
    return sorted(best.values(), key=lambda run: run.id)


def _age(run: Run) -> tuple[bool, float]:
    return run.finished, (run.path / ("DONE" if run.finished else "config.json")).stat().st_mtime


def no_runs(folder: Path) -> str:
    """What is wrong with a group that has no runs, and which have some."""
    groups = sorted({path.parent.parent.name for path in runs_dir().glob("*/*/config.json")})
    if groups:
        return f"no runs in {folder}: {unknown('group', folder.name, groups)}"
    return f"no runs in {folder}, nor in any other group: `k24lab train --name {folder.name}` makes one"
