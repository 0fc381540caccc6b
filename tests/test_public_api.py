"""What `import k24lab` promises: names that load when they are used, each with an example that runs."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import k24lab
from k24lab.errors import ConfigError, RunError
from k24lab.lab.paths import CHECKOUT
from k24lab.marl.agent import RNNAgent


def examples(name: str, text: str) -> doctest.DocTest:
    return doctest.DocTestParser().get_doctest(text, {}, name, None, 0)


def run(test: doctest.DocTest) -> None:
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("name", k24lab.__all__)
def test_each_public_name_has_an_example_that_uses_it_and_runs(name):
    value = getattr(k24lab, name)
    text = value.__doc__ if callable(value) else k24lab.__doc__  # a constant has no docstring of its own
    test = examples(name, text)
    assert any(f"k24lab.{name}" in example.source for example in test.examples), f"{name} has no example"
    if callable(value):
        run(test)


def test_the_tour_of_the_package_names_everything_and_runs():
    assert [name for name in k24lab.__all__ if f"`{name}`" not in k24lab.__doc__] == []
    run(examples("k24lab", k24lab.__doc__))


def test_the_snippet_of_the_page_about_the_layer_runs_as_it_stands():
    code = (CHECKOUT / "docs" / "layer.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    assert names["one"](names["x"][0]).allclose(names["y"][0], atol=1e-5)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg")
def test_the_learning_curves_of_the_page_about_experiments_are_drawn_as_it_stands(tiny_config, tmp_path, monkeypatch):
    for seed in range(3):
        k24lab.train(tiny_config(seed=seed), "mine", progress=False)
    page = (CHECKOUT / "docs" / "experiments.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "learning_curves" in code]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert (tmp_path / "curves.png").is_file()
    assert names["curves"]["n"].tolist() == [3] * 5 and names["curves"]["low"].notna().all()
    assert [text.get_text() for text in names["ax"].figure.legends[0].get_texts()] == ["K-2:4"]


@pytest.mark.parametrize(
    ("call", "given", "error", "said"),
    [
        (k24lab.train, {"task": "rolenav"}, ConfigError, "config = {'task': 'rolenav'} is a dict, not a Config: "),
        (k24lab.build_config, "rolenav", ConfigError, "params = 'rolenav' is a str, not a mapping of settings: write"),
        (k24lab.load_metrics, [Path("a")], RunError, "runs holds PosixPath('a'), expected what k24lab.find_runs"),
        (k24lab.load_metrics, [], RunError, "runs is empty, expected what k24lab.find_runs returns, or the name of a"),
        (k24lab.load_metrics, "mine", RunError, "no runs in"),
    ],
)
def test_arguments_of_another_kind_are_one_clear_error(call, given, error, said):
    plain = inspect.unwrap(call)  # as users have it, without the tests' checks of annotations
    with pytest.raises(error, match=f"^{re.escape(said)}"):
        plain(given)


def test_an_agent_can_be_called():
    test = examples("RNNAgent", RNNAgent.forward.__doc__)
    assert test.examples
    run(test)


def test_the_static_imports_are_what_the_names_load():
    source = Path(k24lab.__file__).read_text()
    for name, module in k24lab._MODULE_OF.items():
        assert getattr(importlib.import_module(f"k24lab.{module}"), name) is getattr(k24lab, name)
        (line,) = [line for line in source.splitlines() if line.startswith(f"    from k24lab.{module} import")]
        assert name in line.partition("import")[2].replace(",", " ").split()
    assert sorted(k24lab._MODULE_OF) == sorted(k24lab.__all__) and set(k24lab.__all__) <= set(dir(k24lab))
    assert Path(k24lab.__file__).with_name("py.typed").exists()


def test_a_wrong_name_names_the_nearest_right_one():
    with pytest.raises(AttributeError, match=r"unknown name 'aneal'; did you mean 'anneal'"):
        k24lab.aneal  # noqa: B018
    assert not hasattr(k24lab, "__wrapped__")


def test_settings_and_runs_are_there_without_torch():
    code = "import sys, k24lab; k24lab.build_config(); k24lab.find_runs; dir(k24lab); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
