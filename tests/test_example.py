"""`examples/train_minimal.py`, run as a user runs it."""

import os
import re
import subprocess
import sys

import pytest

from k24lab.lab.paths import CHECKOUT

EXAMPLE = CHECKOUT / "examples" / "train_minimal.py"
# Without `__main__` the file defines its functions and trains nothing.
IMPORTS = f"import runpy, sys; runpy.run_path({str(EXAMPLE)!r}); print(*sys.modules)"


def python(*arguments: str) -> str:
    """What an interpreter of its own prints."""
    command, env = [sys.executable, *arguments], os.environ | {"PYTHONPATH": str(CHECKOUT)}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_three_agents_that_see_the_same_reach_their_own_goals():
    printed = python(str(EXAMPLE), "--seed", "0")
    (mean_return,) = re.findall(r"^mean greedy return of 1000 episodes: ([\d.]+)$", printed, re.MULTILINE)
    assert float(mean_return) >= 2.8  # at most 1.45 without an identity


def test_it_shows_the_method_with_the_layers_and_the_environment_alone():
    parts = {name.split(".")[1] for name in python("-c", IMPORTS).split() if name.startswith("k24lab.")}
    assert {"core", "envs"} <= parts <= {"core", "envs", "ops", "errors", "values"}
