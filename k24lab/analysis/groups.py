"""Groups of runs that are read together as one study, and what must not be compared as if it were equal."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from k24lab.analysis.load import NOT_A_VARIANT, Run, default_settings, find_runs, unique_runs, variants
from k24lab.errors import RunError, warn

# What must be the same for all methods of a task, or their returns cannot be compared.
BUDGET = ("t_max", "hidden_dim", "lr", "learner", "mixer", "n_envs", "batch_size", "updates_per_rollout")


def find_groups(groups: Sequence[str | Path], **filters: object) -> list[Run]:
    """Finished runs of several groups (`find_runs`); a run that two groups share counts once.

    A `RunWarning` says how many went, and what of `unequal_settings` a reader would take for equal.

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


def unequal_settings(runs: Sequence[Run]) -> list[str]:
    """A sentence for each setting that differs where the names of the variants do not tell.

    Within a task: the budget of its methods. Between tasks: a setting of a variant that has the same name in both,
    unless it is its method's default, or all methods of the task share it. And runs with the same name and seed.
    """
    tasks: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run, variant in zip(runs, variants(runs), strict=True):
        tasks[str(run.config["task"])][variant].append(run)
    problems = [problem for task, by_variant in tasks.items() for problem in _within(task, by_variant)]
    names = dict.fromkeys(variant for by_variant in tasks.values() for variant in by_variant)
    return problems + [problem for variant in names for problem in _between(variant, tasks)]


def _within(task: str, by_variant: Mapping[str, Sequence[Run]]) -> list[str]:
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
        seeds = [run.config["seed"] for run in runs]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            problems.append(f"{task}: {variant} has several runs of the seeds {twice}: settings that it does not name")
    return problems


def _between(variant: str, tasks: Mapping[str, Mapping[str, Sequence[Run]]]) -> list[str]:
    own = {task: by_variant[variant][0].config for task, by_variant in tasks.items() if variant in by_variant}
    problems = []
    for key in next(iter(own.values())).keys() - NOT_A_VARIANT - {"task", "seed"}:
        values = {task: config.get(key) for task, config in own.items()}
        if len(set(values.values())) > 1 and any(_is_own(key, own[task], tasks[task]) for task in own):
            each = ", ".join(f"{value!r} in {task}" for task, value in values.items())
            problems.append(f"{variant} stands for different settings: {key} = {each}")
    return sorted(problems)


def _is_own(key: str, config: Mapping[str, Any], by_variant: Mapping[str, Sequence[Run]]) -> bool:
    """Whether a setting is neither its method's default nor common to all methods of the task."""
    if len(by_variant) > 1 and len({run.config.get(key) for runs in by_variant.values() for run in runs}) == 1:
        return False
    defaults = default_settings(str(config.get("method")), str(config.get("learner", "q")))
    return config.get(key) != defaults.get(key)
