"""The examples of docs/contributing.md, run as they stand there."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import TINY

from k24lab.lab.paths import CHECKOUT
from k24lab.lab.train import train

TEXT = (CHECKOUT / "docs" / "contributing.md").read_text()
TITLES = ("A task", "A method", "A figure")
BLOCKS = {title: re.findall(rf"## {title}\n.*?```\w+\n(.*?)```", TEXT, re.DOTALL)[0] for title in TITLES}
TRAIN_AND_LOOK = """
from k24lab.lab.config import build_config
from k24lab.marl.agent import build_agent
from k24lab.lab.train import train
config = build_config({settings})
layer = build_agent(config, 40, 5, 3).layers["fc2"]
kept = (layer.effective()[0] != 0).float().mean(dim=(1, 2))
assert len(kept) == 3 and ((0.3 < kept) & (kept < 0.7)).all(), kept
print(train(config, progress=False))
from k24lab.inference.method_costs import method_costs
costs = method_costs(40, 64, 5, 3, methods=["unstructured50", "fups"]).set_index("method")
assert costs.loc["unstructured50", "kept"] == 0.5 and costs.loc["fups", "kept"] == 1
assert costs.loc["unstructured50", "memory_bytes"] > costs.loc["fups", "memory_bytes"]
"""


def test_each_example_is_short():
    assert all(len(block.splitlines()) <= 40 for block in BLOCKS.values())


def test_the_task_trains(tiny_config, tmp_path, monkeypatch):
    (tmp_path / "corridor.py").write_text(BLOCKS["A task"])
    monkeypatch.syspath_prepend(tmp_path)
    path = train(tiny_config(task="pettingzoo/corridor:Corridor:length=6", method="fups-id"), progress=False)
    assert (path / "DONE").exists()


@pytest.fixture
def python_with_the_method(tmp_path):
    """Run Python in a copy of the package that has the example's method: `python_with_the_method("-c", "...")`."""
    package = tmp_path / "k24lab"
    shutil.copytree(CHECKOUT / "k24lab", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "methods" / "unstructured50.py").write_text(BLOCKS["A method"])
    listed = (package / "methods" / "__init__.py").read_text()
    listed = listed.replace("        MultiHead(),\n", "        MultiHead(),\n        Unstructured50(),\n")
    line = "from k24lab.methods.unstructured50 import Unstructured50\n"
    (package / "methods" / "__init__.py").write_text(listed.replace("\nMETHODS:", f"{line}\nMETHODS:"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "K24LAB_HOME": str(tmp_path)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_the_method_is_one_file_and_one_line(python_with_the_method):
    script = TRAIN_AND_LOOK.replace("{settings}", repr(TINY | {"method": "unstructured50"}))
    done = python_with_the_method("-c", script)
    assert done.returncode == 0 and "unstructured50" in done.stdout, done.stderr


def test_the_method_passes_the_tests_of_every_method(python_with_the_method, tmp_path):
    files = [str(CHECKOUT / "tests" / f"test_{name}.py") for name in ("learner_metrics", "reference_update")]
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", f"pythonpath={tmp_path}"]
    done = python_with_the_method("-m", "pytest", *options, "-k", "unstructured50", *files)
    assert done.returncode == 0 and re.search(r"^[1-9]\d* passed", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg")
def test_the_figure_is_drawn(tiny_config, home):
    for seed in (0, 1):
        train(tiny_config(method="fups", seed=seed), "mine", progress=False)
    exec(compile(BLOCKS["A figure"], "contributing.md", "exec"), {})
    drawn = {path.name for path in (home / "figures").iterdir()}
    assert drawn == {f"mine_spread.{kind}" for kind in ("pdf", "png", "csv")}
    assert (home / "figures" / "mine_spread.csv").read_text().startswith("variant,t_env,std\nfups,0,")
