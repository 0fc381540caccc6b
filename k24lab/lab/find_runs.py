"""Which runs there are, which belong together, and what they are called; reads configurations alone."""

import dataclasses
import functools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k24lab.errors import ConfigError, RunError, unknown, warn
from k24lab.lab.config import NOT_HASHED, build_config
from k24lab.lab.paths import runs_dir
from k24lab.lab.unused_settings import unused_fields, used_fields
from k24lab.methods import METHODS

# Fields that say where a run computes and how often it writes, not what is learned.
NOT_A_VARIANT = NOT_HASHED | {"device", "log_interval", "checkpoint_interval", "snapshot_interval"}
# What must be the same for all methods of a task, or their returns cannot be compared.
BUDGET = ("t_max", "hidden_dim", "lr", "learner", "mixer", "n_envs", "batch_size", "updates_per_rollout")


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


def find_runs(source: str | Path, *, finished_only: bool = True, **filters: object) -> list[Run]:
    """Runs of a group (`"demo"` stands for `runs_dir()/demo`) or of a folder (a Path), sorted by folder name.

    A filter is a config field with one value or a list of allowed ones (`method=["k24", "nops"]`); None allows all.
    Unfinished runs (no DONE file) are left out, and of runs with the same config only the newest finished one stays;
    a `RunWarning` says how many were left out.

    Raises:
        RunError: no such folder, no runs in it, none finished, none that passes the filters, an unknown field.

    Examples:
        >>> import k24lab
        >>> config = k24lab.build_config(task="rolenav", t_max=400, test_episodes=10)  # too short to learn
        >>> run = k24lab.train(config, name="doc", progress=False)
        >>> [run.config["method"] for run in k24lab.find_runs("doc", task="rolenav")]
        ['k24']
    """
    folder = source if isinstance(source, Path) else runs_dir() / source
    runs = [read_run(path.parent) for path in sorted(folder.glob("*/config.json"))]
    if not runs:
        raise RunError(no_runs(folder))
    for key, wanted in filters.items():
        if wanted is not None:
            runs = _with_field(runs, key, wanted, folder)
    runs = unique_runs(runs, folder)
    if not finished_only:
        return runs
    finished = [run for run in runs if run.finished]
    if not finished:
        raise RunError(f"none of the {len(runs)} runs in {folder} is finished (finished_only=False reads them anyway)")
    if len(finished) < len(runs):
        warn(f"{len(runs) - len(finished)} of {len(runs)} runs in {folder} are unfinished and left out")
    return finished


def find_run(source: str | Path, **filters: object) -> Run:
    """The run of `find_runs` that represents its group: nearest to the method's default settings, then least seed.

    Raises:
        RunError: as `find_runs`.
    """
    runs = find_runs(source, finished_only=True, **filters)
    runs = [run for run in runs if run.config["task"] == runs[0].config["task"]]
    deviations = [len(name.split()) for name in variants(runs)]
    return min(zip(deviations, runs, strict=True), key=lambda pair: (pair[0], pair[1].config["seed"], pair[1].id))[1]


def find_groups(groups: Sequence[str | Path], **filters: object) -> list[Run]:
    """Finished runs of several groups (`find_runs`), read as one study; a run that two groups share counts once.

    A `RunWarning` says how many were left out, and what of `unequal_settings` a reader would take for equal.

    Raises:
        RunError: no group, or what `find_runs` raises.
    """
    if not groups:
        raise RunError("name at least one group of runs")
    found = [run for group in dict.fromkeys(groups) for run in find_runs(group, finished_only=True, **filters)]
    runs = unique_runs(found, ", ".join(map(str, groups)))
    for problem in unequal_settings(runs):
        warn(problem)
    return runs


def read_run(path: Path) -> Run:
    """The run of one folder, finished or not; raises RunError."""
    return Run(path, read_json(path / "config.json"), (path / "DONE").is_file())


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object; anything else is a `RunError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} holds {type(value).__name__}, not a JSON object")
    return value


def group_names() -> list[str]:
    """The groups that have runs, finished or not."""
    return sorted({path.parent.parent.name for path in runs_dir().glob("*/*/config.json")})


def no_runs(folder: Path) -> str:
    """What is wrong with a group that has no runs, and which have some."""
    if groups := group_names():
        return f"no runs in {folder}: {unknown('group', folder.name, groups)}"
    return f"no runs in {folder}, nor in any other group: `k24lab train --name {folder.name}` makes one"


def _with_field(runs: list[Run], key: str, wanted: object, folder: Path) -> list[Run]:
    known = {field for run in runs for field in run.config}
    if key not in known:
        raise RunError(unknown("config field", key, known))
    allowed = list(wanted) if isinstance(wanted, Iterable) and not isinstance(wanted, str) else [wanted]
    kept = [run for run in runs if run.config.get(key) in allowed]
    if not kept:
        present = sorted({str(run.config.get(key)) for run in runs})
        raise RunError(f"no run in {folder} has {key} in {allowed} (there are: {', '.join(present)})")
    return kept


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


def variants(runs: Sequence[Run]) -> list[str]:
    """A name per run under which seeds may be averaged: the method, and what makes it differ from others of its task.

    Fields that vary within task and method are named where they are not the method's default, or where most runs of the
    task share another value (a task's own mixer, say) not that one: `k24` beside `k24 hidden_dim=16 mask_rnn=False`.
    """
    families = [(run.config.get("task"), str(run.config.get("method"))) for run in runs]
    of_task: dict[object, list[Run]] = defaultdict(list)
    of_family: dict[object, list[Run]] = defaultdict(list)
    for (task, method), run in zip(families, runs, strict=True):
        of_task[task].append(run)
        of_family[task, method].append(run)
    common = {task: _majority_settings(members) for task, members in of_task.items()}
    varying = {family: sorted(varying_fields(members)) for family, members in of_family.items()}
    return [
        " ".join([family[1], *_deviations(run, varying[family], common[family[0]])])
        for family, run in zip(families, runs, strict=True)
    ]


def varying_fields(runs: Sequence[Run]) -> list[str]:
    """Config fields that are not the same in all runs, the seed and what defines no variant left out."""
    values: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for key, value in run.config.items():
            values[key].add(repr(value))
    return [key for key, seen in values.items() if len(seen) > 1 and key not in NOT_A_VARIANT | {"seed"}]


def _majority_settings(runs: Sequence[Run]) -> dict[str, object]:
    """The values that more than half of some runs share, where these use the setting and their method has none."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for run in runs:
        for key in run.config.keys() - _own_settings(run).keys() - unused_fields(run.config):
            values[key][json.dumps(run.config[key])] += 1
    most = {key: counter.most_common(1)[0] for key, counter in values.items()}
    return {key: json.loads(value) for key, (value, n) in most.items() if 2 * n > len(runs)}


def _own_settings(run: Run) -> Mapping[str, object]:
    method = METHODS.get(str(run.config.get("method")))
    return method.settings if method else {}


def _deviations(run: Run, keys: Sequence[str], common: Mapping[str, object]) -> list[str]:
    method, own = str(run.config.get("method")), _own_settings(run)  # the runs of other methods do not decide these
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


def unequal_settings(runs: Sequence[Run]) -> list[str]:
    """A sentence for each setting that differs where the names of the variants do not tell.

    Within a task: the budget of its methods. Between tasks: a setting of a variant that has the same name in both,
    unless it is its method's default, or all methods of the task share it. And runs with the same name and seed.
    """
    tasks: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run, variant in zip(runs, variants(runs), strict=True):
        tasks[str(run.config["task"])][variant].append(run)
    problems = [problem for task, by_variant in tasks.items() for problem in _unequal_within(task, by_variant)]
    names = dict.fromkeys(variant for by_variant in tasks.values() for variant in by_variant)
    return problems + [problem for variant in names for problem in _unequal_between(variant, tasks)]


def _unequal_within(task: str, by_variant: Mapping[str, Sequence[Run]]) -> list[str]:
    problems = []
    for key in BUDGET:
        values: dict[Any, list[str]] = defaultdict(list)
        for variant, runs in by_variant.items():
            if f" {key}=" not in variant:
                values[runs[0].config.get(key)].append(variant)
        if len(values) > 1:
            each = "; ".join(f"{value!r} ({', '.join(names)})" for value, names in values.items())
            problems.append(f"{task}: methods that are compared differ in {key} = {each}")
    for variant, runs in by_variant.items():
        seeds = Counter(run.config["seed"] for run in runs)
        if twice := sorted(seed for seed, count in seeds.items() if count > 1):
            problems.append(f"{task}: {variant} has several runs of the seeds {twice}: settings that it does not name")
    return problems


def _unequal_between(variant: str, tasks: Mapping[str, Mapping[str, Sequence[Run]]]) -> list[str]:
    own = {task: by_variant[variant][0].config for task, by_variant in tasks.items() if variant in by_variant}
    problems = []
    for key in next(iter(own.values())).keys() - NOT_A_VARIANT - {"task", "seed"}:
        values = {task: config.get(key) for task, config in own.items()}
        if len(set(values.values())) > 1 and any(_is_chosen(key, own[task], tasks[task]) for task in own):
            each = ", ".join(f"{value!r} in {task}" for task, value in values.items())
            problems.append(f"{variant} stands for different settings: {key} = {each}")
    return sorted(problems)


def _is_chosen(key: str, config: Mapping[str, Any], by_variant: Mapping[str, Sequence[Run]]) -> bool:
    """Whether a setting is neither its method's default nor common to all methods of the task."""
    if len(by_variant) > 1 and len({run.config.get(key) for runs in by_variant.values() for run in runs}) == 1:
        return False
    defaults = default_settings(str(config.get("method")), str(config.get("learner", "q")))
    return config.get(key) != defaults.get(key)
