"""Grid files: what runs they give, and what is said of their mistakes."""

import itertools
from pathlib import Path

import pytest
import yaml

from k24lab.errors import ConfigError
from k24lab.lab import notebooks
from k24lab.lab.grid import expand, load_grid


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


def test_zip_walks_lists_side_by_side_and_list_takes_whole_sets_each_as_one_axis():
    configs = expand({}, {"seed": [0, 1], "zip": {"lr": [0.1, 0.2], "gamma": [0.8, 0.9]}})
    assert [(c.seed, c.lr, c.gamma) for c in configs] == [(s, *p) for s in (0, 1) for p in ((0.1, 0.8), (0.2, 0.9))]
    configs = expand({"lr": 0.5}, {"list": [{"method": "fups"}, {"method": "k24", "lr": 0.1}], "seed": [0, 1]})
    assert [(c.method, c.lr, c.seed) for c in configs] == [
        ("fups", 0.5, 0),
        ("fups", 0.5, 1),
        ("k24", 0.1, 0),
        ("k24", 0.1, 1),
    ]


def test_parameters_of_a_task_lie_between_the_common_ones_and_those_of_the_grid(grid_file):
    path = grid_file(
        common={"t_max": 1000, "gamma": 0.9, "lr": 0.1},
        per_task={"rolenav": {"t_max": 2000, "lr": 0.2}},
        grids=[{"task": ["rolenav", "rolenav:n_agents=2"]}, {"seed": 1, "lr": 0.3}],
    )
    configs = load_grid(path).configs
    assert [(c.task, c.t_max, c.gamma, c.lr) for c in configs] == [
        ("rolenav", 2000, 0.9, 0.2),
        ("rolenav:n_agents=2", 1000, 0.9, 0.1),
        ("rolenav", 2000, 0.9, 0.3),
    ]


def test_grid_names_its_notebook(grid_file):
    assert load_grid(grid_file(notebook="02_train", grids=[{}])).notebook == "02_train"


def test_method_defaults_apply_inside_a_grid():
    a, b = expand({}, {"method": ["k24", "k24-alpha"]})
    assert (a.score_weight_power, b.score_weight_power) == (1.0, 0.0)


def test_file_with_several_grids_gives_all_of_their_runs(grid_file):
    path = grid_file(name="mine", common={"t_max": 1000}, grids=[{"seed": [0, 1]}, {"method": "fups"}])
    name, configs, notebook = load_grid(path)
    assert notebook is None
    assert name == "mine"
    assert [(c.method, c.seed, c.t_max) for c in configs] == [("k24", 0, 1000), ("k24", 1, 1000), ("fups", 0, 1000)]


def test_a_file_or_key_that_is_not_there_names_what_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("grid: [{}]")
    with pytest.raises(
        ConfigError, match=r"no grid file mien\.yml: No such file .*unknown grid .mien.*allowed: .*rolenav3"
    ):
        load_grid(Path("mien.yml"))
    assert load_grid(Path("demo")).name == "demo"  # the package's own
    (tmp_path / "demo").write_text("name: my own\ngrids: [{}]")
    with pytest.raises(ConfigError, match="name = 'my own'"):
        load_grid(Path("demo"))
    with pytest.raises(ConfigError, match="unknown key 'grid'; did you mean 'grids'"):
        load_grid(Path("mine.yaml"))


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
        ({"grids": [{"seed": [0, 1]}, {"seed": 1}]}, "k24, rolenav, seed 1 is given twice"),
        ({"grids": [{"seed": [2, 2]}]}, "seed 2 is given twice"),
        ({"grids": [{"n_threads": [1, 2]}]}, "is given twice"),
        ({"gridz": [], "grids": [{}]}, "unknown key 'gridz'; did you mean 'grids'"),
        ({"common": {}}, "must have the key grids, a list"),
        ({"grids": {"seed": [0]}}, "must have the key grids, a list"),
        ({"grids": []}, "at least one"),
        ({"grids": [{}, "seed"]}, "grids, entry 2 = 'seed' must map names to values"),
        ({"common": ["seed"], "grids": [{}]}, r"common = \['seed'\] must map names to values"),
        ({"per_task": ["rolenav"], "grids": [{}]}, r"per_task = \['rolenav'\] must map names to values"),
        ({"per_task": {"rolenav": 3}, "grids": [{}]}, "per_task: rolenav = 3 must map names to values"),
        ({"per_task": {"rolenva": {"lr": 0.1}}, "grids": [{}]}, "unknown task 'rolenva'; did you mean 'rolenav'"),
        ({"grids": [{"zip": {"lr": [0.1], "seed": [0, 1]}}]}, r"equally long and not empty: {'lr': 1, 'seed': 2}"),
        ({"grids": [{"zip": {"lr": []}}]}, "equally long and not empty"),
        ({"grids": [{"zip": {"lr": 0.1}}]}, r"zip = {'lr': 0.1} must map parameters to lists"),
        ({"grids": [{"list": [{"sed": 0}]}]}, "unknown parameter 'sed'"),
        ({"grids": [{"list": [0, 1]}]}, r"list = \[0, 1\] must be a list of mappings"),
        ({"grids": [{"seed": 1, "zip": {"seed": [0]}}]}, "seed is given twice"),
        ({"notebook": "02_trian", "grids": [{}]}, "unknown notebook '02_trian'; did you mean '02_train'"),
        ({"notebook": "01_masks", "grids": [{}]}, "01_masks.ipynb: unknown parameter '(name|overrides)'"),
        ({"notebook": 5, "grids": [{}]}, "notebook = 5 must be the name of a notebook"),
        ({"notebook": ["02_train"], "grids": [{}]}, r"notebook = \['02_train'\] must be the name"),
        ({"common": 0, "grids": [{}]}, "common = 0 must map names to values"),
        ({"name": "a/b", "grids": [{}]}, "name = 'a/b' must be letters"),
        ({"name": ["a"], "grids": [{}]}, r"name = \['a'\] must be text"),
        ({"grids": [{"seed": 0}, {"seed": 1, "lr": [0.1, -1]}]}, r"grid\.yaml: grids, entry 2: lr = -1\.0 must be"),
        ({"grids": [{"reset_trigger": False}]}, r"reset_trigger = False .*YAML takes off for False: write 'off'"),
        ({"grids": [{"device": "tpu"}]}, "device = 'tpu' must be 'cpu', 'cuda' or 'cuda:<number>'"),
        (
            {"grids": [{"mask_per": "type"}]},
            "mask_per = 'type' needs an environment with unit types; 'rolenav' has none",
        ),
        ({"grids": [{"n_workers": 2}]}, "n_workers = 2: 'rolenav' steps all its environments at once"),
        ({"grids": [{"task": "rolenav:n_roles=two"}]}, "option n_roles = 'two' is a str, not an int$"),
        ({"grids": [{"task": "rolenav:n_agents=2.5"}]}, "option n_agents = 2.5 is a float, not an int"),
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


@pytest.mark.parametrize("text", ["seed: 0\n  seed: 1", "seed: 0\n  method: k24\n  seed: 0"])
def test_key_that_stands_twice_is_an_error_not_the_last_of_them(text, tmp_path):
    (tmp_path / "grid.yaml").write_text(f"grids:\n- {text}\n")
    with pytest.raises(ConfigError, match="the key seed stands twice"):
        load_grid(tmp_path / "grid.yaml")


def test_missing_grid_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no grid file"):
        load_grid(tmp_path / "none.yaml")
    (tmp_path / "text").write_text("")
    with pytest.raises(ConfigError, match="no grid file"):
        load_grid(tmp_path / "text" / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_grid(tmp_path)
    (tmp_path / "latin").write_bytes(b"name: \xe9\ngrids: [{}]")
    with pytest.raises(ConfigError, match="latin is not YAML"):
        load_grid(tmp_path / "latin")


NUMBERS = [("010", 8), ("-0_17", 8), ("1:30:00", 60), ("1:30.5", 60)]


@pytest.mark.parametrize(("number", "base"), NUMBERS)
@pytest.mark.parametrize("text", ["common: {{seed: {}}}\ngrids: [{{}}]", "grids: [{{seed: [0, {}]}}]"])
def test_numbers_that_yaml_reads_in_another_base_are_refused_by_grids(number, base, text, tmp_path):
    (tmp_path / "grid.yaml").write_text(text.format(number))
    said = rf"grid\.yaml: {number}: YAML reads this as a number in base {base}; write it in base 10"
    with pytest.raises(ConfigError, match=said):
        load_grid(tmp_path / "grid.yaml")


@pytest.mark.parametrize(("number", "base"), NUMBERS)
def test_numbers_that_yaml_reads_in_another_base_are_refused_as_parameters(number, base):
    with pytest.raises(ConfigError, match=rf"runs = '\[{number}\]' .*{number}: YAML reads this .* base {base}"):
        notebooks.parse_parameters({"runs": f"[{number}]"})
    assert notebooks.parse_parameters({"runs": f"'{number}'"}) == {"runs": number}


def test_keys_for_anchors_are_no_settings(tmp_path):
    text = "x-long: &long {t_max: 300000}\nx-1: 3\ngrids: [{<<: *long, seed: [0, 1]}, {<<: *long, t_max: 200000}]"
    (tmp_path / "grid.yaml").write_text(text)
    assert [c.t_max for c in load_grid(tmp_path / "grid.yaml").configs] == [300_000, 300_000, 200_000]
    (tmp_path / "grid.yaml").write_text("y-long: 3\ngrids: [{}]")
    with pytest.raises(ConfigError, match=r"unknown key 'y-long' \(allowed: .*x-<anything>\)"):
        load_grid(tmp_path / "grid.yaml")
