"""Level-Based Foraging and RWARE through their adapter."""

import numpy as np
import pytest
import torch

from k24lab.envs.registry import canonical_task, make_env
from k24lab.envs.tuple_envs import TupleParallelEnv, _build
from k24lab.errors import ConfigError
from k24lab.lab.config import build_config
from k24lab.lab.train import train

pytest.importorskip("lbforaging")
pytest.importorskip("rware")
FORAGING, WAREHOUSE = "lbforaging/Foraging-8x8-2p-2f-coop-v3", "rware/rware-tiny-2ag-v2"


def play(task: str, seed: int, n_envs: int = 2):
    env = make_env(task, n_envs)
    g = torch.Generator().manual_seed(seed)
    steps = [env.reset(seed)]
    while not (steps[-1].terminated | steps[-1].truncated).all():
        noise = torch.rand(steps[-1].avail_actions.shape, generator=g)
        steps.append(env.step((noise * steps[-1].avail_actions).argmax(dim=-1)))
    env.close()
    return env.spec, steps


@pytest.mark.parametrize("task", [FORAGING, f"{WAREHOUSE}:max_steps=40"])
def test_a_whole_episode_is_the_same_for_the_same_seed(task):
    spec, steps = play(task, 3)
    _, again = play(task, 3)
    assert spec.n_agents == 2 and spec.episode_limit == len(steps) - 1 == (50 if "lb" in task else 40)
    for one, other in zip(steps, again, strict=True):
        assert torch.equal(one.obs, other.obs) and torch.equal(one.reward, other.reward)
    assert steps[-1].truncated.all() and not steps[-1].terminated.any()


class Scripted:
    """A library's environment that says in advance when it ends, and what is left then."""

    def __init__(self, length: int, limit: int, field: np.ndarray | None):
        self.length, self.max_steps, self.t = length, limit, 0
        self.observation_space = self.action_space = [0, 1]
        if field is not None:
            self.field = field

    def reset(self, seed):
        self.t = 0
        return (np.zeros(1), np.ones(1)), {}

    def step(self, actions):
        self.actions, self.t = actions, self.t + 1
        return (np.zeros(1), np.ones(1)), [0.25, 0.5], self.t >= self.length, False, {}


@pytest.mark.parametrize(
    ("length", "limit", "field", "terminated"),
    [(3, 3, None, False), (2, 3, None, True), (3, 3, np.ones((2, 2)), False), (3, 3, np.zeros((2, 2)), True)],
)
def test_an_end_at_the_time_limit_is_a_truncation_unless_all_food_is_eaten(length, limit, field, terminated):
    inner = Scripted(length, limit, field)
    env = TupleParallelEnv(inner)
    assert env.max_cycles == limit and env.possible_agents == ["agent_0", "agent_1"]
    obs, _ = env.reset(seed=1)
    assert list(obs) == env.agents == env.possible_agents
    for _ in range(length):
        assert env.agents
        _, rewards, ended, cut, _ = env.step({"agent_1": 4, "agent_0": 2})
    assert inner.actions == [2, 4] and rewards == {"agent_0": 0.25, "agent_1": 0.5}
    assert ended == dict.fromkeys(obs, terminated) and cut == dict.fromkeys(obs, not terminated) and not env.agents


def test_players_hash_as_numbers_so_that_sets_of_them_have_one_order():
    players = _build("lbforaging", "Foraging-8x8-3p-1f-v3")._env.players
    assert [hash(player) for player in players] == [0, 1, 2]
    assert list({*reversed(players)}) == players and players[0] != players[1]


@pytest.mark.parametrize("task", ["lbforaging/Foraging-8x8-2p-2f-coop", "rware/rware-tiny-2ag"])
def test_an_unknown_id_names_the_nearest_one(task):
    with pytest.raises(ConfigError, match=f"unknown {task.partition('/')[0]} environment .*did you mean"):
        make_env(task, 1)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (f"{FORAGING}:max_episode_step=5", "unknown option 'max_episode_step'; did you mean 'max_episode_steps'"),
        (f"{WAREHOUSE}:max_step=5", "unknown option 'max_step'; did you mean 'max_steps'"),
    ],
)
def test_an_unknown_option_names_the_nearest_one(task, said):
    with pytest.raises(ConfigError, match=said):
        make_env(task, 1)


def test_an_option_that_repeats_the_default_of_its_id_is_left_out():
    assert canonical_task(f"{FORAGING}:players=2,sight=8") == FORAGING
    assert canonical_task(f"{FORAGING}:sight=3") == f"{FORAGING}:sight=3"


def test_a_missing_library_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lbforaging", None)
    with pytest.raises(ConfigError, match=r"needs lbforaging .*pip install 'k24lab\[lbforaging\]'"):
        make_env(FORAGING, 1)


def test_a_method_trains_on_it_in_worker_processes_with_the_same_numbers(home):
    tiny = {"task": FORAGING, "t_max": 400, "n_envs": 4, "batch_size": 4, "buffer_size": 8, "hidden_dim": 8}
    tiny |= {"test_episodes": 4, "test_interval": 200, "log_interval": 200}
    runs = [train(build_config(tiny | {"n_workers": n}), name=f"w{n}", progress=False) for n in (0, 2)]
    keep = [[line.split('"seconds"')[0] for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    assert keep[0] == keep[1] and keep[0]
