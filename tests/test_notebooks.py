"""The notebooks keep their promises: thin, parameterised, without outputs, small in continuous integration."""

import ast
import dataclasses
import json
import tempfile
from pathlib import Path

import nbformat
import papermill
import pytest

from k24lab.analysis.draw_figures import draw_figures
from k24lab.errors import ConfigError, RunError
from k24lab.lab import notebooks
from k24lab.lab.config import Config, build_config
from k24lab.lab.paths import project_root
from k24lab.lab.runs import RunFolder, run_folder

PATHS = sorted((project_root() / "notebooks").glob("*.ipynb"))
FIELDS = {field.name for field in dataclasses.fields(Config)}


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters_cell(notebook):
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


def assigned_names(source):
    return {target.id for node in ast.parse(source).body for target in node.targets}


def test_there_are_notebooks():
    assert len(PATHS) >= 7


def test_notebook_is_valid_and_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))


def test_notebook_is_thin(notebook):
    sources = [cell.source for cell in code_cells(notebook)]
    assert all(len(source.splitlines()) <= 12 for source in sources)
    assert sum(len(source.splitlines()) for source in sources) <= 120
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    assert not [n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda)]


def test_notebook_begins_with_question_and_answer_and_ends_with_a_conclusion(notebook):
    assert "**Question.**" in notebook.cells[0].source and "**Answer.**" in notebook.cells[0].source
    assert "Conclusion" in notebook.cells[-1].source


def test_every_parameter_is_a_config_field_or_documented(notebook):
    cell = parameters_cell(notebook)
    text = " ".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    commented = {line.split(" = ")[0] for line in cell.source.splitlines() if "  # " in line}
    for name in assigned_names(cell.source) - FIELDS - commented:
        assert f"`{name}`" in text, f"parameter {name} is documented nowhere in the notebook"


def test_small_values_for_continuous_integration_are_real_parameters(notebook):
    cell = parameters_cell(notebook)
    assert set(cell.metadata.get("nbmake", {}).get("mock", {})) <= assigned_names(cell.source)


def test_papermill_finds_the_parameters(notebook, tmp_path):
    path = tmp_path / "n.ipynb"
    nbformat.write(notebook, path)
    assert set(papermill.inspect_notebook(str(path))) == assigned_names(parameters_cell(notebook).source)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project with one two-cell notebook."""
    monkeypatch.setenv("K24LAB_HOME", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    cells = [
        nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import sys; print(1 / x, sys.executable)"),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "notebooks" / "small.ipynb")
    return tmp_path


def test_executed_notebook_is_kept_under_its_label(home):
    import sys

    path = notebooks.execute("small", {"x": 4}, label="four")
    assert path == home / "executed" / "small-four.ipynb"
    output = json.loads(path.read_text())["cells"][-1]["outputs"][0]["text"]
    assert "".join(output).split() == ["0.25", sys.executable]  # whatever kernel the user has installed
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_kernels_need_nothing_of_the_users_home(home, tmp_path, monkeypatch):
    user = tmp_path / "user"
    (user / ".ipython").mkdir(parents=True)
    (user / ".ipython" / "profile_default").touch()  # no folder can be made there
    monkeypatch.setenv("HOME", str(user))
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        assert notebooks.execute("small", {"x": 4}).is_file()
        assert not list(Path(folder).glob("k24lab-kernel-*"))


def test_a_long_path_of_the_temporary_folder_is_no_problem_for_kernels(home, tmp_path, monkeypatch):
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert notebooks.execute("small", {"x": 4}).is_file()
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_is_named(home):
    (home / "executed").touch()
    with pytest.raises(OSError, match="executed"):  # the command line says it in one line
        notebooks.execute("small", {"x": 4})


def test_failed_notebook_never_looks_like_a_result(home):
    with pytest.raises(RunError, match="ZeroDivisionError"):
        notebooks.execute("small", {"x": 0})
    assert [p.name for p in (home / "executed").iterdir()] == ["small.failed.ipynb"]


def test_unknown_parameter_is_refused_before_the_kernel_starts(home):
    with pytest.raises(ConfigError, match=r"unknown parameter 'y'.*allowed: x"):
        notebooks.execute("small", {"y": 4})
    assert not (home / "executed").exists()


def test_parameters_of_a_batch_are_yaml_and_known_before_the_first_kernel_starts(home, monkeypatch):
    assert notebooks.parse_parameters({"a": "k24", "b": "[x, 1.5]"}) == {"a": "k24", "b": ["x", 1.5]}
    with pytest.raises(ConfigError, match=r"a = '\[x' is not a value in YAML"):
        notebooks.parse_parameters({"a": "[x"})
    with pytest.raises(ConfigError, match=r"small\.ipynb: unknown parameter 'xx'; did you mean 'x'"):
        notebooks.execute_all(["small"], None, 1, {"xx": 2})
    assert not (home / "executed").exists()
    calls = []
    monkeypatch.setattr(notebooks, "execute", lambda *given: calls.append(given) or Path())
    notebooks.execute_all(["small"], None, 1, {"x": 2})
    assert calls == [("small", {"x": 2}, "")]


def test_runs_that_a_notebook_does_not_take_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("K24LAB_HOME", str(tmp_path / "without notebooks"))  # so they are those of the package
    calls = []
    monkeypatch.setattr(notebooks, "execute", lambda *given: calls.append(given) or Path())
    said = r"08_paper_figures\.ipynb: unknown parameter 'runs'; did you mean 'groups'"
    with pytest.raises(ConfigError, match=said):
        notebooks.execute_all(["05_ablations", "08_paper_figures"], "mine", 1)
    with pytest.raises(ConfigError, match=r"01_masks\.ipynb: unknown parameter 'runs'.*\(allowed: .*temperatures"):
        notebooks.execute_all(["01_masks"], "mine", 1)
    with pytest.raises(ConfigError, match=r"given twice: runs = 'mine' \(--runs\) and 'yours' \(--parameters\)"):
        notebooks.execute_all(["05_ablations"], "mine", 1, {"runs": "yours"})
    assert not calls
    notebooks.execute_all([], "mine", 1)  # those that are not named take what they can
    assert [given[0] for given in calls] == list(notebooks.DEFAULT_NOTEBOOKS)
    assert [given[1].get("runs") for given in calls] == [None, "mine", "mine", "mine", "mine"]
    calls.clear()
    notebooks.execute_all(["05_ablations", "08_paper_figures"], None, 1)
    notebooks.execute_all(["05_ablations"], None, 1, {"runs": "yours"})
    assert calls == [
        ("05_ablations", {"runs": "demo"}, "demo"),
        ("08_paper_figures", {}, ""),
        ("05_ablations", {"runs": "yours"}, "yours"),
    ]


def test_unknown_notebook_names_the_nearest(home):
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        notebooks.execute("smal", {})


def test_figures_of_groups_come_from_the_notebooks_that_their_runs_can_fill(home, monkeypatch):
    for group, config, masks in (("a", {"method": "fups"}, False), ("b", {"method": "k24", "mask_per": "type"}, True)):
        folder = home / "runs" / group / "run"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config | {"task": "rolenav", "seed": 0}))
        (folder / "summary.json").write_text('{"test_return_mean": 1.0}')
        (folder / "DONE").touch()
        if masks:
            (folder / "patterns").mkdir()
    calls = []
    monkeypatch.setattr(notebooks, "execute", lambda *given: calls.append(given) or Path())
    draw_figures(["a", "b"], 1, None, "paper")
    of_b = ("05_ablations", "03_mask_patterns", "04_agent_similarity", "07_unit_types")
    assert calls == [
        ("05_ablations", {"runs": "a"}, "a"),
        *((name, {"runs": "b"} | ({"method": "k24"} if name[:2] in ("03", "04") else {}), "b") for name in of_b),
        ("08_paper_figures", {"groups": ["a", "b"], "variant": "k24", "figures": "paper"}, "paper"),
    ]
    calls.clear()
    draw_figures(["a"], 1, None, "mine")
    assert calls[-1] == ("08_paper_figures", {"groups": ["a"], "variant": "fups", "figures": "mine"}, "mine")
    with pytest.raises(RunError, match="'k24' does not have runs in all tasks; those that have: fups"):
        draw_figures(["a"], 1, "k24", "mine")
    with pytest.raises(RunError, match=r"no runs in .*c: unknown group 'c'.*a, b"):
        draw_figures(["a", "c"], 1, None, "paper")


NO_KERNEL = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("name = 1", metadata={"tags": ["parameters"]})])


@pytest.mark.parametrize("text", ["no JSON", nbformat.writes(NO_KERNEL)])
def test_what_papermill_cannot_read_is_no_notebook(text, home):
    (home / "notebooks" / "broken.ipynb").write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.ipynb cannot be read as a notebook"):
        notebooks.parameter_names("broken", ("name", "overrides"))


def test_notebook_of_a_run_gets_the_fields_it_takes_and_the_rest_as_overrides(home, monkeypatch, tiny_config):
    cell = nbformat.v4.new_code_cell('name = ""\ntask = ""\noverrides = {}', metadata={"tags": ["parameters"]})
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=metadata), home / "notebooks" / "one.ipynb")
    config = tiny_config(method="fups", seed=3, learner="nq")
    folder = RunFolder(run_folder(config, "group"), config).path
    calls = []
    monkeypatch.setattr(notebooks, "_execute", lambda *given: calls.append(given) or Path())
    notebooks.execute_run(folder, "one")
    ((source, parameters, target, stem),) = calls
    assert (source.stem, target, stem) == ("one", folder, "one")
    assert (
        parameters["name"] == "group"
        and parameters["task"] == "rolenav"
        and parameters.keys() - {"name"}
        == {
            "task",
            "overrides",
        }
    )
    overrides = parameters["overrides"]
    assert build_config({"task": "rolenav", **overrides}) == config and overrides["seed"] == 3
    assert "polyak" not in overrides


def test_figures_of_masks_are_of_a_method_that_the_group_has(home, monkeypatch):
    folder = home / "runs" / "look" / "run"
    (folder / "patterns").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"method": "k24-alpha", "task": "rolenav", "seed": 0}))
    (folder / "summary.json").write_text('{"test_return_mean": 1.0}')
    (folder / "DONE").touch()
    calls = []
    monkeypatch.setattr(notebooks, "execute", lambda *given: calls.append(given) or Path())
    draw_figures(["look"], 1, None, "mine")
    assert ("03_mask_patterns", {"runs": "look", "method": "k24-alpha"}, "look") in calls


def test_notebooks_are_copied_into_a_new_folder_only(tmp_path):
    copied = notebooks.copy_notebooks(tmp_path / "mine")
    assert (copied / "02_train.ipynb").is_file() and not list(copied.rglob("*.py"))
    with pytest.raises(ConfigError, match=r"mine is there already: name a new folder"):
        notebooks.copy_notebooks(copied)
