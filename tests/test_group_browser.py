"""The list of groups in a notebook: it shows the masks of the chosen one and plays its runs."""

import pytest

from k24lab.errors import RunError
from k24lab.lab.config import build_config
from k24lab.lab.train import train
from k24lab.rendering.group_browser import GroupBrowser

TINY = {"t_max": 200, "n_envs": 8, "hidden_dim": 16, "batch_size": 4, "test_episodes": 2}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("K24LAB_HOME", str(tmp_path))
    methods = {"masked": ("fups", "k24"), "plain": ("fups",)}
    return {g: [train(build_config(TINY | {"method": m}), g, progress=False) for m in ms] for g, ms in methods.items()}


def test_a_group_is_chosen_and_its_runs_are_played(runs):
    look = GroupBrowser("masked", rows=8)
    assert look.group.options == ("masked", "plain") and "K-2:4" in look.masks.figure.get_suptitle()
    assert look.run.value == runs["masked"][1]  # the one whose masks are shown
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= look._repr_mimebundle_().keys()
    assert look.animation.layout.display == "none"
    look.button.click()
    assert bytes(look.animation.value).startswith(b"GIF8") and "episodes: 1" in look.problem.value
    assert look.animation.layout.display != "none"

    look.group.value = "plain"  # as a user does
    assert look.masks is None and "none of 1 runs has masks" in look.problem.value
    assert look.animation.layout.display == "none" and look.run.value == runs["plain"][0]
    assert look.replay(runs["plain"][0].name).startswith(b"GIF8")
    assert look.select("masked").masks is not None and not look.problem.value


def test_what_cannot_be_shown_is_told(runs):
    look = GroupBrowser("plain")
    with pytest.raises(RunError, match="unknown group 'maskd'; did you mean 'masked'"):
        look.select("maskd")
    with pytest.raises(RunError, match="unknown run 'nothing'"):
        look.replay("nothing")
    (runs["plain"][0] / "checkpoint.safetensors").unlink()
    look.button.click()
    assert "checkpoint" in look.problem.value
