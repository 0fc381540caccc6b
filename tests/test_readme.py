"""What the README and the page of results name exists."""

import importlib.util
import re
from types import SimpleNamespace

import pytest

from k24lab.envs.base import EnvSpec
from k24lab.inference.method_costs import method_costs
from k24lab.lab import grid
from k24lab.lab.paths import project_root
from k24lab.methods import METHODS

ROOT = project_root()  # before a test moves it
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "figures" / "README.md").read_text()
TEXT = README + RESULTS
GRIDS = sorted((ROOT / "notebooks" / "grids").glob("*.yaml"))
NOTEBOOKS = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(k24lab(?:\.\w+)+)`", TEXT))))
def test_dotted_name_exists(name):
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        assert hasattr(importlib.import_module(module), attribute)


def test_every_method_and_notebook_is_in_the_readme():
    assert all(f"`{method}`" in README for method in METHODS)
    assert all(f"`{name}`" in README for name in NOTEBOOKS)


def test_commands_name_files_that_exist():
    paths = re.findall(r"notebooks/[\w/]+\.(?:yaml|ipynb)", TEXT)
    assert paths and all((ROOT / path).is_file() for path in paths)
    named = re.findall(r"k24lab notebooks ((?:\d\d_\w+ ?)+)", TEXT)
    assert named and {part for names in named for part in names.split()} <= NOTEBOOKS


def test_figures_that_the_results_name_are_there():
    prefixes = set(re.findall(r"`((?:\d\d|bench)_\w+?)(?:_?\*|\.\w+)?`", RESULTS)) - NOTEBOOKS
    files = [path.name for path in (ROOT / "figures").iterdir()]
    assert prefixes and not [p for p in prefixes if not any(name.startswith(p) for name in files)]


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_grid_file_can_run_and_is_named_after_its_group(path, monkeypatch):
    if "smax/" in path.read_text() and importlib.util.find_spec("jaxmarl") is None:
        # The parameters are checked without the world.
        spec = EnvSpec(1, 5, obs_dims=(9,) * 5, n_actions=(9,) * 5, state_dim=9, episode_limit=9, n_unit_types=6)
        monkeypatch.setattr("k24lab.envs.registry.make_env", lambda *_: SimpleNamespace(close=lambda: None, spec=spec))
    name, configs, _ = grid.load_grid(path)
    assert name == path.stem and configs


def test_costs_in_the_readme_are_those_that_are_counted():
    for row in method_costs(18, 64, 5, 3).itertuples():
        numbers = [f"{row.parameters:,}", "[^|]*", f"{row.multiply_adds:,}", f"{row.memory_bytes / 1000:.1f}"]
        pattern = rf"`{row.method}`[^|]*\| " + r" \| ".join(numbers) + r" \|"
        assert re.search(pattern, README), row.method


def test_grid_of_the_readme_can_run(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "grid.yaml").write_text(text)
    name, configs, notebook = grid.load_grid(tmp_path / "grid.yaml")
    assert (name, len(configs), notebook) == ("mine", 24, "02_train")
