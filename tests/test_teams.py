"""The trained teams that come with the package: small, loaded by name, as good as they were, shown without a run."""

import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image
from test_cli import assert_one_line_error, k24lab  # noqa: F401

from k24lab.envs import vmas
from k24lab.envs.registry import make_env
from k24lab.errors import ConfigError, RunError
from k24lab.inference.actor import Actor
from k24lab.inference.freeze import TEAMS, freeze_run, load_learner, load_team, save_team
from k24lab.lab.paths import CHECKOUT, figures_dir
from k24lab.lab.train import train
from k24lab.marl.policy import Policy, play
from k24lab.rendering import animation
from k24lab.rendering.animation import record, replay_team

VMAS = pytest.mark.skipif(importlib.util.find_spec("vmas") is None, reason="VMAS is not installed: extra vmas")
RETURNS = {"rolenav8": 7.0, "vmas_navigation": 2.5}  # of random actions: below 0
NAMES = ["rolenav8", pytest.param("vmas_navigation", marks=VMAS)]


@pytest.fixture(autouse=True)
def small_frames(monkeypatch):
    monkeypatch.setattr(animation, "DPI", 40)


def test_the_teams_are_small_documented_and_made_by_make_teams():
    files = list(TEAMS.glob("*.safetensors"))
    assert {file.stem for file in files} == set(RETURNS)
    assert sum(file.stat().st_size for file in files) < 1_000_000
    readme, makefile = (TEAMS / "README.md").read_text(), (CHECKOUT / "Makefile").read_text()
    for file in files:
        run = load_team(file.stem).config
        assert f"`{file.name}`" in readme and f"-s{run.seed}-{run.hash()} " in makefile


@pytest.mark.parametrize("name", NAMES)
def test_a_team_returns_what_it_did(name):
    team = load_team(name)
    env, actor = make_env(team.config.task, 64), Actor(team)
    batch = play(team, env, Policy(actor.act, actor.initial_hidden), seed=5)
    assert batch.returns.mean() > RETURNS[name]


def test_a_team_is_named_or_is_a_file(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    team = freeze_run(str(train(tiny_config(t_max=200), folder=tmp_path / "run", progress=False)))
    save_team(team, str(tmp_path / "mine.safetensors"))
    assert load_team("mine.safetensors").t_env == 200
    with pytest.raises(ConfigError, match=r"unknown team 'mine'.*\(allowed: rolenav8, vmas_navigation\)"):
        load_team("mine")
    with pytest.raises(RunError, match=r"other\.safetensors does not exist"):
        load_team("other.safetensors")


@pytest.mark.parametrize(
    "changes", [{"method": "k24", "agent_id": True}, {"task": "rolenav:n_types=2", "mask_per": "type"}]
)
def test_a_frozen_team_plays_the_test_episodes_of_its_run(changes, tiny_config, tmp_path):
    folder = train(tiny_config(t_max=200, **changes), folder=tmp_path / "run", progress=False)
    learner, config, t_env = load_learner(folder)
    team = freeze_run(folder)
    for ours, of_run in zip(record(team, config, t_env, 3), record(learner, config, t_env, 3), strict=True):
        assert np.array_equal(ours.rewards, of_run.rewards)
    save_team(team, tmp_path / "team.safetensors")
    path, said = replay_team(str(tmp_path / "team.safetensors"), episodes=1)
    assert (path.name, path.parent) == ("replay_team.gif", figures_dir()) and said.endswith("; trained 200 env steps")


def test_the_command_shows_a_team_or_says_which_there_are(k24lab, home):  # noqa: F811
    code, out, _ = k24lab("replay", "--team", "rolenav8", "--episodes", 1)
    assert code == 0 and out.splitlines()[0].endswith("; trained 128k env steps")
    assert out.splitlines()[1] == str(home / "figures" / "replay_rolenav8.gif")
    with Image.open(home / "figures" / "replay_rolenav8.gif") as gif:
        assert gif.n_frames == 26
    assert_one_line_error(k24lab("replay", "--team", "rolenav9"), "did you mean 'rolenav8'", "vmas_navigation")
    for neither in ([], ["run", "--team", "rolenav8"]):
        assert_one_line_error(k24lab("replay", *neither), "name either a run or, with --team, a trained team")


def test_a_team_whose_environment_is_missing_names_the_extra(k24lab, monkeypatch):  # noqa: F811
    vmas._load.cache_clear()
    monkeypatch.setitem(sys.modules, "vmas.scenarios", None)
    assert_one_line_error(k24lab("replay", "--team", "vmas_navigation"), "needs VMAS", "pip install 'k24lab[vmas]'")
