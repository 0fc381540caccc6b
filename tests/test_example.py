"""The files of `examples/`, run as a user runs them."""

import os
import re
import subprocess
import sys

import pytest

from k24lab.lab.paths import CHECKOUT

EXAMPLES = CHECKOUT / "examples"
EXAMPLE = EXAMPLES / "train_minimal.py"
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


def errors(printed: str) -> dict[str, float]:
    return {name.strip(): float(error) for name, error in re.findall(r"^(.+?) +error ([\d.]+) ", printed, re.MULTILINE)}


def test_supervised_learning_prints_an_error_of_each_variant():
    printed = python(str(EXAMPLES / "supervised.py"), "--seeds", "0", "--steps", "30", "--hidden-dim", "8")
    found = errors(printed)
    assert list(found) == ["annealed", "not annealed", "random masks", "shared dense"]
    assert all(0.5 < error < 2 for error in found.values()) and len(set(found.values())) == 4


@pytest.mark.slow
def test_annealing_halves_the_error_of_supervised_learning_as_its_docstring_says():
    path = EXAMPLES / "supervised.py"
    said = dict(re.findall(r"^ +(.+?) +error [\d.]+   seeds ([\d.]+) ", path.read_text(), re.MULTILINE))  # of seed 0
    found = errors(python(str(path), "--seeds", "0"))
    assert list(said) == list(found) and found["annealed"] < 0.7 * found["not annealed"]
    for name, error in found.items():
        assert error == pytest.approx(float(said[name]), rel=0.3), name


TINY_PPO = "--num-envs 4 --num-steps 5 --total-timesteps 200 --hidden-dim 8 --update-epochs 1".split()


@pytest.mark.parametrize("masks", ["--masks", "--no-masks"])
def test_ppo_trains_a_team_with_and_without_masks(masks):
    pytest.importorskip("vmas")
    printed = python(str(EXAMPLES / "ppo_cleanrl_style.py"), *TINY_PPO, masks)
    assert re.search(r"^steps=200 return=-?[\d.]+ SPS=\d+$", printed, re.MULTILINE)
    assert re.search(r"^greedy return of 4 episodes: -?[\d.]+$", printed, re.MULTILINE)
    assert ("network of agent 0: Sequential" in printed) == (masks == "--masks")
