"""Groups of runs read as one study: nothing counts twice, and what is unequal is said."""

import json
import warnings

import pytest

from k24lab.errors import RunError, RunWarning
from k24lab.lab.config import build_config
from k24lab.lab.find_runs import find_groups, unequal_settings
from k24lab.lab.runs import RunFolder, run_folder


@pytest.fixture
def make_run():
    """Write a finished run folder of a group."""

    def make(group="g", **changes):
        config = build_config(changes)
        RunFolder(run_folder(config, group), config).finish({"test_return_mean": 1.0})

    return make


def problems(groups):
    with pytest.warns(RunWarning) as caught:
        find_groups(groups)
    return [str(warning.message) for warning in caught]


def test_groups_of_equal_settings_are_read_in_silence(make_run):
    for seed in (0, 1):
        make_run(method="k24", seed=seed)
        make_run("h", method="k24-alpha", seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(find_groups(["g", "h"])) == 4


def test_run_of_two_groups_counts_once_and_a_group_named_twice_too(make_run):
    make_run("g")
    make_run("h")
    make_run("h", seed=1)
    assert problems(["g", "h"]) == ["1 of 3 runs in g, h repeat a config and are left out"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(find_groups(["h", "h"])) == 2
    with pytest.raises(RunError, match="name at least one group"):
        find_groups([])


def test_methods_of_a_task_with_other_budgets_are_named(make_run):
    make_run(method="k24", t_max=64_000)
    make_run(method="fups", t_max=128_000)
    (problem,) = problems(["g"])
    assert problem == "rolenav: methods that are compared differ in t_max = 128000 (fups); 64000 (k24)"


def test_name_that_tells_the_budget_needs_no_warning(make_run):
    make_run(method="k24")
    make_run(method="k24", t_max=64_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_groups(["g"])


def test_variant_with_other_settings_in_another_task_is_named(make_run):
    for task, noise in (("rolenav", "none"), ("rolenav:n_agents=4", "annealed")):
        make_run(task=task, method="k24", noise=noise)
        make_run(task=task, method="random24", noise="annealed")
    (problem,) = problems(["g"])
    assert problem.startswith("k24 stands for different settings: noise = ")
    assert "'none' in rolenav" in problem and "'annealed' in rolenav:n_agents=4" in problem


def test_settings_that_all_methods_of_a_task_share_are_the_tasks(make_run):
    for task, lr in (("rolenav", 0.01), ("rolenav:n_agents=4", 0.003)):
        for method in ("k24", "random24"):
            make_run(task=task, method=method, lr=lr)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(find_groups(["g"])) == 4


def test_runs_that_differ_in_what_no_name_tells_are_named(make_run):
    make_run(method="k24", seed=3)
    folder = run_folder(build_config({"method": "k24", "seed": 3}), "g")
    older = folder.with_name("older")
    older.mkdir()
    config = json.loads((folder / "config.json").read_text())
    del config["gamma"]  # a version of the package that did not have it
    (older / "config.json").write_text(json.dumps(config))
    (older / "DONE").touch()
    (problem,) = problems(["g"])
    assert "k24 has several runs of the seeds [3]" in problem


def test_no_runs_are_equal():
    assert unequal_settings([]) == []
