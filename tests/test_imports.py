"""What must not be loaded: readers of runs work where torch is not installed, and start without waiting for it."""

import importlib
import json
import subprocess
import sys

import pytest
from conftest import TINY

from k24lab.lab.config import build_config
from k24lab.lab.runs import RunFolder, run_folder

LOAD_ALL = """
import importlib, pkgutil, sys
import k24lab.analysis
for module in pkgutil.iter_modules(k24lab.analysis.__path__):
    importlib.import_module(f"k24lab.analysis.{module.name}")
    if found := {"torch", "jax", "papermill"} & sys.modules.keys():
        sys.exit(f"k24lab.analysis.{module.name} loads {', '.join(found)}")
print(len([name for name in sys.modules if name.startswith("k24lab.analysis.")]))
"""


def test_analysis_loads_no_torch():
    done = subprocess.run([sys.executable, "-c", LOAD_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8  # modules that were looked at


# Runs a command and prints which of the packages in the first argument it has loaded.
RUN_COMMAND = """
import sys
heavy, sys.argv = sys.argv[1].split(), ["k24lab", *sys.argv[2:]]
from k24lab import cli
try:
    cli.main()
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *(set(heavy) & sys.modules.keys()))
"""
PLOTS = "pandas matplotlib seaborn scipy papermill nbformat jupyter_client IPython jax"


def loaded_by(*command, heavy):
    line = [sys.executable, "-c", RUN_COMMAND, heavy, *map(str, command)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].removeprefix("loaded:").split()


@pytest.fixture
def started_run(home):
    config = build_config(TINY | {"task": "rolenav:n_agents=4"})
    folder = RunFolder(run_folder(config, "g"), config).path
    (folder / "metrics.jsonl").write_text(json.dumps({"t_env": 400}) + "\n")
    return folder


COMMANDS = [["--help"], ["status", "--help"], ["train", "--help"], ["sweep", "--help"]]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_help_loads_neither_torch_nor_numpy_nor_what_draws(command):
    assert loaded_by(*command, heavy=f"torch numpy {PLOTS}") == []


def test_status_and_show_read_json_alone(started_run):
    for command in (["status", "g"], ["show", started_run]):
        assert loaded_by(*command, heavy=f"torch numpy {PLOTS}") == [], command


# Trains until the first env step, and prints which of the packages in the first argument are loaded by then.
FIRST_STEP = """
import os, sys
from k24lab.envs.rolenav import RoleNav
from k24lab.lab.config import build_config
from k24lab.lab.train import train

def step(*_):
    print("loaded:", *(set(sys.argv[1].split()) & sys.modules.keys()), flush=True)
    os._exit(0)

RoleNav.step = step
train(build_config({}), progress=False)
"""


def test_training_loads_nothing_that_draws_and_no_compiler_before_its_first_update():
    line = [sys.executable, "-c", FIRST_STEP, f"torch._dynamo {PLOTS} vmas mpe2 pettingzoo"]
    assert subprocess.run(line, capture_output=True, text=True).stdout == "loaded:\n"


def test_the_package_itself_loads_nothing():
    code = "import sys; before = set(sys.modules); import k24lab; print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 2


def test_the_models_for_benchmarl_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarl", None)  # as where it is not installed
    with pytest.raises(ImportError, match=r"needs BenchMARL .*pip install 'k24lab\[benchmarl\]'"):
        importlib.import_module("k24lab.integrations.benchmarl")
