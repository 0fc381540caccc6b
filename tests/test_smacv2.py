"""The SMACv2 adapter against a stub of the package's wrapper."""

import contextlib
import random
import sys
import time
from types import SimpleNamespace
from typing import ClassVar

import fake_starcraft
import numpy as np
import pytest
from battles import play, same

from k24lab.envs import smacv2
from k24lab.envs.smacv2 import SMACV2_TASKS, UNIT_TYPES, SMACv2, capability_config, smacv2_builder
from k24lab.errors import ConfigError, RunError


class Draw:
    """A distribution with random numbers of its own, and perhaps another one inside it."""

    def __init__(self, inner=None):
        self.rng = np.random.default_rng()
        if inner:
            self.inner = inner

    def generate(self):
        return self.rng.normal()


class Stub:
    """Two agents with 7 observations, of which the last 3 are the type; 7 actions; 6 env steps, or `script`'s end.

    `script` maps (number of the game, env step) to what happens: "lost", "hangs", "none" (at a reset), "won", "over",
    "dead".
    """

    script: ClassVar[dict] = {}
    games: ClassVar[list] = []  # every wrapper that was made

    def __init__(self, **kwargs):
        self.kwargs, self.number, self.closed = kwargs, len(self.games), False
        self.games.append(self)
        self.env_key_to_distribution_map = {"a": Draw(), "b": Draw(Draw(Draw()))}
        self.env = SimpleNamespace(n_enemies=2, reward_death_value=10, reward_win=200, max_reward=0, enemies={})
        self.env.full_restart = lambda: pytest.fail("the package's own restart hides the loss")

    def get_env_info(self):
        return {"obs_shape": 7, "n_actions": 7, "state_shape": 3, "episode_limit": 6}

    def reset(self):
        self.t, self.dead, said = 0, False, self.script.get((self.number, 0))
        if said == "lost":
            self.env.full_restart()
        b = self.env_key_to_distribution_map["b"]
        self.draws = [d.generate() for d in (*self.env_key_to_distribution_map.values(), b.inner, b.inner.inner)]
        self.draws += [random.random(), np.random.rand()]  # noqa: NPY002
        self.types = random.sample(range(3), 2)
        self.env.enemies = {i: SimpleNamespace(health_max=40, shield_max=5 * i) for i in range(2)}
        self.env.max_reward += 1000  # as the package does, at each reset of the first episode
        return None if said == "none" else (self.get_obs(), self.get_state())

    def step(self, actions):
        self.t += 1
        said = self.script.get((self.number, self.t), "")
        if said == "lost":
            return 0, True, {}
        if said == "hangs":
            time.sleep(1000)
        self.dead |= said == "dead"
        self.draws[0] += sum(actions) + random.random() + np.random.rand()  # noqa: NPY002
        info = {"battle_won": said == "won"}
        if said not in ("won", "over") and self.t == 6:
            info["episode_limit"] = True
        return 1.5, said in ("won", "over") or self.t == 6, info

    def get_obs(self):
        seen = [[*self.draws[:3], self.t, *np.eye(3)[i]] for i in self.types]
        return [np.array(seen[0]), np.zeros(7) if self.dead else np.array(seen[1])]

    def get_state(self):
        return np.array(self.draws[3:6])

    def get_avail_actions(self):
        return [[0, 1, 1, 0, 0, 0, 0], [1] + [0] * 6 if self.dead else [0, 1, 0, 0, 0, 0, 1]]

    def close(self):
        self.closed = True


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(smacv2, "_wrapper_class", lambda: Stub)
    monkeypatch.setattr(smacv2, "_tie_games", lambda started: contextlib.nullcontext())
    monkeypatch.setattr(Stub, "games", [])

    def make(script=None, **options) -> SMACv2:
        monkeypatch.setattr(Stub, "script", script or {})
        return SMACv2("terran", 2, 2, **options)

    return make


def test_the_published_task_is_what_is_asked_for(stub):
    env = stub(difficulty="A")
    asked = Stub.games[0].kwargs
    config = asked.pop("capability_config")
    assert config == {
        "n_units": 2,
        "n_enemies": 2,
        "team_gen": {
            "dist_type": "weighted_teams",
            "unit_types": ["marine", "marauder", "medivac"],
            "weights": [0.45, 0.45, 0.1],
            "exception_unit_types": ["medivac"],
            "observe": True,
        },
        "start_positions": {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32},
    }
    assert config is not Stub.games[0].kwargs and capability_config("terran", 2, 2) == config  # a fresh one each time
    assert asked == {
        "map_name": "10gen_terran",
        "obs_own_pos": True,
        "use_unit_ranges": True,
        "continuing_episode": True,
        "conic_fov": False,
        "difficulty": "A",
    }
    spec = env.spec
    assert (spec.obs_dims, spec.n_actions, spec.state_dim, spec.episode_limit) == ((7, 7), (7, 7), 3, 6)
    assert spec.n_unit_types == 3 and spec.has_win
    assert {len(capability_config(race, 5, 5)["team_gen"]["unit_types"]) for race in UNIT_TYPES} == {3}


def test_everything_random_follows_from_the_seed_and_disturbs_nobody(stub):
    one, other = stub(), stub()
    first = play(one, 7)
    other.reset(8)
    random.random()
    np.random.rand()  # noqa: NPY002
    assert same(play(other, 7), first) and same(play(one, 7), first)
    assert not np.array_equal(one.reset(8).obs[:, :3], first[0].obs[:, :3])
    draws = np.array([stub_game.draws for stub_game in Stub.games])
    assert len(set(draws[0])) == 6  # every generator has a seed of its own
    np.random.seed(1)  # noqa: NPY002
    outer = np.random.get_state()[1].copy()  # noqa: NPY002
    one.step(np.array([1, 1]))
    assert np.array_equal(np.random.get_state()[1], outer)  # noqa: NPY002
    state = random.getstate()  # the type checks of the tests draw from `random` too: look at the smallest part alone
    with one._game.random.in_use():
        random.random()
    assert random.getstate() == state


@pytest.mark.parametrize(
    "script, steps, terminated, won",
    [
        ({}, 6, False, False),
        ({(0, 6): "won"}, 6, True, True),
        ({(0, 6): "over"}, 6, True, False),
        ({(0, 3): "won"}, 3, True, True),
        ({(0, 2): "over"}, 2, True, False),
    ],
)
def test_the_time_limit_is_apart_from_the_end_of_the_battle(stub, script, steps, terminated, won):
    rows = play(stub(script), 0)
    assert len(rows) == steps + 1 and not any(row.terminated or row.truncated or row.won for row in rows[:-1])
    assert (rows[-1].terminated, rows[-1].truncated, rows[-1].won) == (terminated, not terminated, won)


def test_the_dead_have_nothing_but_no_op_and_keep_their_type(stub):
    rows = play(stub({(0, 2): "dead"}), 0)
    assert [row.alive.tolist() for row in rows] == [[True, True]] * 2 + [[True, False]] * 5
    assert rows[-1].avail_actions[1].tolist() == [True] + [False] * 6 and not rows[-1].obs[1].any()
    assert all(np.array_equal(row.unit_type, rows[0].obs[:, -3:].argmax(axis=1)) for row in rows)


def test_reward_is_scaled_by_this_episode_s_enemies_alone(stub):
    env = stub()
    for _ in range(3):
        env.reset(0)
        assert Stub.games[0].env.max_reward == 2 * 10 + 200 + 40 + 45


def test_a_reset_that_returns_nothing_is_a_reset(stub):
    assert same(play(stub({(0, 0): "none"}), 0), play(stub(), 0))


@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_lost_game_is_an_error_and_the_next_reset_starts_a_fresh_one(stub, at):
    expected = play(stub(), 3)
    env = stub({(1, at): "lost"})
    with pytest.raises(RunError, match="the connection to the game is lost"):
        play(env, 3)
    assert Stub.games[1].closed and same(play(env, 3), expected) and len(Stub.games) == 3


def test_an_observation_that_does_not_end_in_the_unit_type_is_an_error(stub, monkeypatch):
    monkeypatch.setattr(Stub, "get_obs", lambda self: [np.full(7, 0.5)] * 2)
    with pytest.raises(RunError, match="ends in its unit type"):
        stub().reset(0)


def test_names_and_options(stub):
    assert len(SMACV2_TASKS) == 15 and {"terran_5v5", "protoss_10v11", "zerg_20v23"} <= set(SMACV2_TASKS)
    assert smacv2_builder("zerg_2v3").build(n_envs=2, conic_fov=True).spec.n_envs == 2
    assert [game.kwargs["capability_config"]["n_enemies"] for game in Stub.games] == [3, 3]
    assert Stub.games[0].kwargs["conic_fov"] and Stub.games[0].kwargs["map_name"] == "10gen_zerg"
    smacv2_builder("zerg_5v5").build(n_envs=1, n_agents=2, n_enemies=9)
    assert Stub.games[-1].kwargs["capability_config"]["n_enemies"] == 9
    with pytest.raises(ConfigError, match="unknown smacv2 task 'teran_5v5'; did you mean 'terran_5v5'"):
        smacv2_builder("teran_5v5")
    with pytest.raises(ConfigError, match=r"n_enemies = 0.*at least 1"):
        smacv2_builder("zerg_5v0").build(n_envs=1)
    with pytest.raises(ConfigError, match="difficulty = 10"):
        smacv2_builder("zerg_5v5").build(n_envs=1, difficulty=10)


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setenv(*smacv2.PYTHON_PROTOBUF)
    monkeypatch.setitem(sys.modules, "smacv2.env", None)
    with pytest.raises(ConfigError, match=r"smacv2 tasks need the package.*pip install --no-deps pysc2==4.0.0"):
        smacv2_builder("terran_5v5").build(n_envs=1)


def test_each_missing_piece_of_the_game_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SC2PATH", str(tmp_path / "game"))
    assert list(smacv2.missing_game_files()) == [f"no folder {tmp_path / 'game'} (set SC2PATH)"]
    folder = fake_starcraft.install(tmp_path / "game")
    assert list(smacv2.missing_game_files()) == []
    (folder / "Versions/Base90000/SC2_x64").chmod(0o644)
    (folder / smacv2.MAP_FILE).unlink()
    assert [said.split()[1] for said in smacv2.missing_game_files()] == ["executable", "map"]
