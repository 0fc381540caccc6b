import itertools

import pytest
import yaml

from k24lab import sweep as sweep_module
from k24lab.config import build_config
from k24lab.errors import ConfigError, RunError
from k24lab.runs import CHECKPOINT, run_folder
from k24lab.sweep import expand, load_grid, sweep
from k24lab.train import train


@pytest.fixture
def grid_file(tmp_path):
    """Write a grid file: `grid_file(grids=[...], common={...})`."""

    def write(**data):
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump(data))
        return tmp_path / "grid.yaml"

    return write


def test_grid_is_the_product_of_its_lists_over_the_common_parameters():
    configs = expand({"t_max": 1000, "lr": 0.01}, {"method": ["k24", "fups"], "seed": [0, 1, 2], "lr": 0.1})
    assert [(c.method, c.seed) for c in configs] == list(itertools.product(["k24", "fups"], [0, 1, 2]))
    assert {(c.t_max, c.lr) for c in configs} == {(1000, 0.1)}


def test_method_defaults_apply_inside_a_grid():
    a, b = expand({}, {"method": ["k24", "k24-alpha"]})
    assert (a.score_weight_power, b.score_weight_power) == (1.0, 0.0)


def test_file_with_several_grids_gives_all_of_their_runs(grid_file):
    path = grid_file(name="mine", common={"t_max": 1000}, grids=[{"seed": [0, 1]}, {"method": "fups"}])
    name, configs = load_grid(path)
    assert name == "mine"
    assert [(c.method, c.seed, c.t_max) for c in configs] == [("k24", 0, 1000), ("k24", 1, 1000), ("fups", 0, 1000)]


def test_name_defaults_to_that_of_the_file_and_is_a_string(grid_file):
    assert load_grid(grid_file(grids=[{}]))[0] == "grid"
    assert load_grid(grid_file(name=2024, grids=[{}]))[0] == "2024"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"grids": [{"seed": []}]}, r"seed = \[\] has no value"),
        ({"grids": [{"sed": [0]}]}, "unknown parameter 'sed'; did you mean 'seed'"),
        ({"grids": [{"seed": ["0"]}]}, "seed = '0' is a str"),
        ({"grids": [{"lr": [0.1, -1]}]}, r"lr = -1\.0 must be above 0"),
        ({"common": {"lr": [0.1]}, "grids": [{}]}, "lr = .* is a list"),
        ({"grids": [{"task": "rolenv"}]}, "unknown task 'rolenv'; did you mean 'rolenav'"),
        ({"grids": [{"task": ["rolenav", "rolenav:n_agent=3"]}]}, "did you mean 'n_agents'"),
        ({"grids": [{"task": "rolenav:n_agents"}]}, "not of the form key=value"),
        ({"grids": [{"seed": [0, 1]}, {"seed": 1}]}, "k24, rolenav, seed 1 stands there twice"),
        ({"grids": [{"seed": [2, 2]}]}, "seed 2 stands there twice"),
        ({"grids": [{"n_threads": [1, 2]}]}, "stands there twice"),
        ({"gridz": [], "grids": [{}]}, "unknown key 'gridz'; did you mean 'grids'"),
        ({"common": {}}, "must have the keys"),
        ({"grids": {"seed": [0]}}, "must have the keys name, common .* and grids, a list"),
        ({"grids": []}, "at least one"),
        ({"grids": ["seed"]}, "must map parameters to values"),
        ({"common": ["seed"], "grids": [{}]}, "must map parameters to values"),
    ],
)
def test_mistakes_in_a_grid_are_errors_before_anything_starts(data, message, grid_file, home):
    with pytest.raises(ConfigError, match=message):
        load_grid(grid_file(**data))
    assert not (home / "runs").exists()


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "just text"])
def test_file_that_is_no_grid_is_an_error(text, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_grid(tmp_path / "bad.yaml")


def test_missing_grid_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no grid file"):
        load_grid(tmp_path / "none.yaml")


@pytest.mark.parametrize(("name", "jobs"), [("../x", 1), ("ok", 0)])
def test_bad_name_or_number_of_processes_starts_nothing(name, jobs, home, monkeypatch):
    monkeypatch.setattr(sweep_module, "_run", lambda path: pytest.fail("a run was started"))
    with pytest.raises(ConfigError, match=r"name = |jobs = "):
        sweep(name, [build_config({})], jobs)
    assert not (home / "runs").exists()


def test_finished_runs_are_skipped_and_a_failing_one_does_not_stop_the_others(tiny_config, tmp_path):
    short = {"t_max": 400, "method": "fups"}
    done, good, bad = configs = [tiny_config(seed=seed, **short) for seed in range(3)]
    train(done, "group", progress=False)
    before = {p: p.stat().st_mtime_ns for p in run_folder(done, "group").rglob("*")}
    run_folder(bad, "group").mkdir(parents=True)
    (run_folder(bad, "group") / CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(RunError) as error:
        sweep("group", configs, jobs=1)
    message = str(error.value)
    assert "1 of 3 runs failed" in message and str(run_folder(bad, "group")) in message
    assert "checkpoint.pt cannot be read" in message  # the end of its log
    assert (run_folder(good, "group") / "DONE").exists() and not (run_folder(bad, "group") / "DONE").exists()
    assert {p: p.stat().st_mtime_ns for p in run_folder(done, "group").rglob("*")} == before
    alone = train(good, folder=tmp_path / "alone", progress=False)
    assert (run_folder(good, "group") / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()
    (run_folder(bad, "group") / CHECKPOINT).unlink()
    train(bad, "group", progress=False)
    assert sweep("group", configs, jobs=2) == [run_folder(config, "group") for config in configs]
