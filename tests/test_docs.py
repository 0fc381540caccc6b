"""What the README, the pages of docs/ and the page of results name exists, and their links lead somewhere."""

import importlib.util
import os
import pkgutil
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from k24lab.envs import registry
from k24lab.envs.base import EnvSpec
from k24lab.inference.method_costs import method_costs
from k24lab.lab import grid
from k24lab.lab.paths import project_root
from k24lab.methods import METHODS

ROOT = project_root()  # before a test moves it
README = ROOT / "README.md"
PAGES = [README, ROOT / "figures" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}
ALL = "\n".join(TEXT.values())
GRIDS = sorted((ROOT / "notebooks" / "grids").glob("*.yaml"))
NOTEBOOKS = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
ROOMS = sorted(path.parent.name for path in (ROOT / "k24lab").glob("*/__init__.py"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def named_by(text):
    """Dotted names of the package: in code spans (also without `k24lab.`), imports and the API reference."""
    imported = re.findall(r"^from (k24lab[\w.]*) import ([\w, ]+)$", text, re.MULTILINE)
    from_imports = {f"{module}.{name.split(' as ')[0]}" for module, names in imported for name in names.split(", ")}
    short = {f"k24lab.{name}" for name in re.findall(rf"`((?:{'|'.join(ROOMS)})(?:\.[a-zA-Z]\w+)+)`", text)}
    return set(re.findall(r"(?:`|::: )(k24lab(?:\.\w+)+)", text)) | from_imports | short


def exists(dotted):
    if dotted.startswith("k24lab.integrations.benchmarl"):  # only where BenchMARL is installed can it be imported
        exported = (ROOT / "k24lab/integrations/benchmarl/__init__.py").read_text().partition("__all__")[2]
        return dotted.endswith(".benchmarl") or f'"{dotted.rpartition(".")[2]}"' in exported
    try:
        pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError):
        return False
    return True


def anchors(text):
    """The anchors of a page's headings, as GitHub and MkDocs make them of headings of plain words."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_readme_is_one_page():
    lines = TEXT["README.md"].splitlines()
    assert len(lines) <= 160 and len(TEXT["README.md"].split()) <= 1300


@pytest.mark.parametrize("page", TEXT)
def test_every_page_begins_with_its_title(page):
    assert TEXT[page].startswith("# ")


@pytest.mark.parametrize("page", TEXT)
def test_dotted_names_exist(page):
    assert [name for name in sorted(named_by(TEXT[page])) if not exists(name)] == []


def test_dotted_names_are_found_where_they_stand():
    text = "`k24lab.core.layers`, `marl.learner`\n::: k24lab.lab.train\nfrom k24lab.core.masks import Noise, MaskDraw\n"
    names = {
        "k24lab.core.layers",
        "k24lab.lab.train",
        "k24lab.core.masks.Noise",
        "k24lab.core.masks.MaskDraw",
    }
    assert named_by(text) == names | {"k24lab.marl.learner"} and all(map(exists, names))
    assert not exists("k24lab.core.layers.Nothing")


@pytest.mark.parametrize("page", TEXT)
def test_links_lead_to_files_and_headings(page):
    for link in LINK.findall(TEXT[page]):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath(ROOT / Path(page).parent / path)) if path else ROOT / page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_paths_in_the_text_exist():
    paths = set(re.findall(r"`((?:k24lab|tests|docs|notebooks|figures)/[\w./]+\.\w+)`", ALL))
    paths |= {f"k24lab/{path}" for path in re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w/]+\.py)`", ALL)}
    made = {"k24lab/methods/unstructured50.py"}  # by the example of docs/contributing.md
    assert paths and [path for path in sorted(paths - made) if not (ROOT / path).is_file()] == []


def test_every_page_is_in_the_navigation():
    def listed(entry):
        if isinstance(entry, str):
            return [entry]
        parts = entry if isinstance(entry, list) else entry.values()
        return [page for part in parts for page in listed(part)]

    found = listed(SITE["nav"])
    outside = {"index.md", *(f"notebooks/{name}.ipynb" for name in NOTEBOOKS)}
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.is_relative_to(ROOT / "docs")}
    assert sorted(found) == sorted(outside | pages)


def test_broken_links_and_omitted_pages_stop_the_site():
    checks = {key: value for part in SITE["validation"].values() for key, value in part.items()}
    names = ("omitted_files", "not_found", "absolute_links", "anchors", "unrecognized_links")
    assert all(checks[name] == "warn" for name in names)  # which --strict turns into errors
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text()


def test_every_method_and_notebook_is_documented():
    assert all(f"`{method}`" in TEXT["docs/method.md"] for method in METHODS)
    assert all(f"`{name}`" in TEXT["docs/notebooks.md"] for name in NOTEBOOKS)


def test_every_result_of_the_readme_is_on_a_generated_page():
    results = re.findall(r"−?[\d.]+ ± [\d.]+", TEXT["README.md"])
    pages = "".join(TEXT[f"docs/{name}.md"] for name in ("results", "first_studies", "ablations"))
    assert len(results) == 32 and [result for result in results if result not in pages] == []


def test_costs_in_the_readme_are_those_of_the_study():
    def rows(page, n_cells):
        cells = [line.strip("| ").split(" | ") for line in TEXT[page].splitlines() if line.startswith("| ")]
        return {row[0].split("`")[1]: row for row in cells if len(row) == n_cells and "`" in row[0]}

    readme, study = rows("README.md", 7), rows("docs/results.md", 10)
    assert len(readme) == 8
    assert {name: row[1:3] for name, row in readme.items()} == {
        name: [study[name][5], study[name][9]] for name in readme
    }


def test_commands_name_files_that_exist():
    paths = re.findall(r"notebooks/[\w/]+\.(?:yaml|ipynb)", ALL)
    assert paths and all((ROOT / path).is_file() for path in paths)
    named = re.findall(r"k24lab notebooks ((?:\d\d_\w+ ?)+)", ALL)
    assert named and {part for names in named for part in names.split()} <= NOTEBOOKS


def test_named_files_of_figures_are_there():
    studies = "|".join(path.name for path in (ROOT / "figures").iterdir() if path.is_dir())
    named = set(re.findall(rf"`(?:figures/)?((?:{studies})/(?:\d\d|bench)_\w+)(?:\.\w+|\*)?`", ALL))
    files = [path.relative_to(ROOT / "figures").as_posix() for path in (ROOT / "figures").glob("*/*")]
    assert named and [name for name in sorted(named) if not any(file.startswith(name) for file in files)] == []


def test_overview_is_drawn_from_the_published_tables(tmp_path):
    spec = importlib.util.spec_from_file_location("draw_overview", ROOT / "docs" / "tools" / "draw_overview.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.draw_overview(tmp_path / "overview.png")
    assert size(tmp_path / "overview.png") == size(ROOT / "docs" / "overview.png") == (1500, 540)


def size(picture):
    from PIL import Image

    with Image.open(picture) as image:
        return image.size


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_grid_file_can_run_and_is_named_after_its_group(path, monkeypatch):
    if "smax/" in path.read_text() and importlib.util.find_spec("jaxmarl") is None:
        # The parameters are checked without the environment.
        spec = EnvSpec(1, 5, obs_dims=(9,) * 5, n_actions=(9,) * 5, state_dim=9, episode_limit=9, n_unit_types=6)
        monkeypatch.setattr(registry, "make_env", lambda *_: SimpleNamespace(close=lambda: None, spec=spec))
    name, configs, _ = grid.load_grid(path)
    assert name == path.stem and configs


def test_documented_costs_are_those_that_are_counted():
    for row in method_costs(18, 64, 5, 3).itertuples():
        numbers = [f"{row.parameters:,}", "[^|]*", f"{row.multiply_adds:,}", f"{row.memory_bytes / 1000:.1f}"]
        pattern = rf"`{row.method}`[^|]*\| " + r" \| ".join(numbers) + r" \|"
        assert re.search(pattern, TEXT["docs/method.md"]), row.method


def test_documented_grid_can_run(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", ALL, re.DOTALL)
    (tmp_path / "grid.yaml").write_text(text)
    name, configs, notebook = grid.load_grid(tmp_path / "grid.yaml")
    assert (name, len(configs), notebook) == ("mine", 24, "02_train")


def test_the_table_of_benchmarl_is_that_of_its_file():
    example = runpy.run_path(str(ROOT / "examples" / "benchmarl_navigation.py"))
    table = example["summary"](pd.read_csv(ROOT / "figures" / "benchmarl" / "navigation.csv"))
    assert table in TEXT["docs/benchmarl.md"]
