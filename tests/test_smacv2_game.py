"""The SMACv2 adapter with the real package, against a stand-in for the game."""

import importlib.util
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import fake_starcraft
import numpy as np
import pytest
import torch
from battles import play, same
from processes import alive, gone

from k24lab.envs import smacv2
from k24lab.envs.smacv2 import UNIT_TYPES, SMACv2
from k24lab.envs.worker_processes import vectorize

needs_package = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("smacv2", "pysc2", "s2clientprotocol")),
    reason="the smacv2 package is not installed",
)


@pytest.fixture
def game(monkeypatch, tmp_path):
    """Install the stand-in; returns how it is told to behave, and checks that no game is left."""
    logs = tmp_path / "games"
    logs.mkdir()
    monkeypatch.setenv("SC2PATH", str(fake_starcraft.install(tmp_path / "game")))
    monkeypatch.setenv("FAKE_SC2_LOG", str(logs))
    monkeypatch.setenv(*smacv2.PYTHON_PROTOBUF)

    def behave(**how: str) -> None:
        for name, value in how.items():
            monkeypatch.setenv(f"FAKE_SC2_{name.upper()}", value)

    behave.logs = logs
    yield behave
    assert gone(launched(logs)), "a game was left behind"


def launched(logs: Path) -> list[int]:
    """Process ids of all games so far, in order."""
    return [int(path.name) for path in sorted(logs.iterdir(), key=lambda path: path.stat().st_ctime_ns)]


@pytest.fixture
def make(game):
    """Make environments that are closed after the test."""
    made = []

    def build(race: str = "terran", n: int = 3, m: int = 3, **options) -> SMACv2:
        made.append(SMACv2(race, n, m, **options))
        return made[-1]

    yield build
    for env in made:
        env.close()


@needs_package
@pytest.mark.parametrize("race", UNIT_TYPES)
def test_twenty_episodes_of_each_race(make, game, race: str):
    env = make(race, 5, 5)
    assert env.spec.obs_dims[0] == (92 if race == "protoss" else 82) and env.spec.episode_limit == 200
    teams, wins = set(), 0
    for seed in range(20):
        rows = play(env, seed)
        assert rows[-1].terminated and not rows[-1].truncated
        teams.add(tuple(rows[0].unit_type))
        wins += rows[-1].won
        assert 0 < sum(row.reward for row in rows) <= 20 + 1e-4
        if rows[-1].won and race != "terran":  # terran also wins against medivacs alone
            assert sum(row.reward for row in rows) == pytest.approx(20)
        for row in rows:
            assert np.array_equal(row.avail_actions.any(axis=1), [True] * 5)
            assert np.array_equal(row.avail_actions[:, 1:].any(axis=1), row.alive)
            assert np.array_equal(row.obs[:, -3:].sum(axis=1) == 1, row.alive)
    assert len(teams) > 5 and 0 < wins < 20
    assert len(launched(game.logs)) == 1


@needs_package
def test_a_battle_nobody_can_win_is_truncated(make, game):
    game(damage="0 0")
    rows = play(make(n=2, m=2), 0, attack=False)
    assert len(rows) == 201 and rows[-1].truncated and not rows[-1].terminated and not rows[-1].won


@needs_package
def test_teams_positions_and_battles_follow_from_the_seed(make):
    one, other = make("zerg", 4, 6), make("zerg", 4, 6)
    first = play(one, 5)
    assert not np.array_equal(other.reset(6).state, first[0].state)
    assert same(play(other, 5), first) and same(play(one, 5), first)


@needs_package
def test_the_game_is_launched_once_and_with_the_seed(make, game):
    env = make()
    for seed in (11, 12, 13):  # a reset before the first episode has ended makes the package launch another one
        env.reset(seed)
    (log,) = game.logs.iterdir()
    assert "create_game 11" in log.read_text().splitlines()


@needs_package
def test_units_that_appear_late_are_waited_for(make, game):
    expected = play(make(), 1)
    game(hidden="5")
    assert np.array_equal(make().reset(1).unit_type, expected[0].unit_type)


def vector_play(env, steps: int = 12) -> list[torch.Tensor]:
    step, seen = env.reset(4), []
    for _ in range(steps):
        step = env.step(step.avail_actions.int().argmax(dim=-1))
        seen += [step.obs, step.state, step.reward, step.unit_type, step.won]
    return seen


@needs_package
def test_workers_give_the_same_battles_and_a_killed_one_takes_its_games_with_it(game):
    build = partial(SMACv2, "terran", 2, 2)
    serial, workers = vectorize(build, 2), vectorize(build, 2, workers=1)
    try:
        expected = vector_play(serial)
        before = launched(game.logs)
        assert all(torch.equal(a, b) for a, b in zip(vector_play(workers), expected, strict=True))
        games = [pid for pid in launched(game.logs) if pid not in before]
        os.kill(workers._workers[0].process.pid, signal.SIGKILL)
        assert len(games) == 2 and gone(games)
        assert all(torch.equal(a, b) for a, b in zip(vector_play(workers), expected, strict=True))
    finally:
        serial.close()
        workers.close()


@needs_package
@pytest.mark.parametrize("workers", [0, 1])
def test_no_game_outlives_its_parent(game, workers: int):
    code = f"""
from k24lab.envs.smacv2 import smacv2_builder
if __name__ == "__main__":
    env = smacv2_builder("terran_2v2").build(n_envs=1, workers={workers})
    env.reset(0)
    print("ready", flush=True)
    while True:
        env.reset(0)
"""
    script = game.logs.parent / "parent.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout.readline() == "ready\n"
            assert [alive(pid) for pid in launched(game.logs)] == [True]
        finally:
            parent.kill()
    assert gone(launched(game.logs))
