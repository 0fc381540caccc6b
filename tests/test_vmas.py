"""The VMAS adapter against a small scenario whose every number is known, and against VMAS itself."""

import random
import sys
import warnings

import numpy as np
import pytest
import torch

from k24lab.envs import vmas as adapter
from k24lab.envs.base import Step, VecEnv
from k24lab.envs.registry import make_env, task_names
from k24lab.envs.vmas import VMAS_TASKS, VmasEnv
from k24lab.errors import ConfigError

try:
    import vmas
    from vmas.simulator.core import Agent, World
    from vmas.simulator.scenario import BaseScenario
except ImportError:
    vmas, BaseScenario = None, object

needs_vmas = pytest.mark.skipif(vmas is None, reason="VMAS is not installed: pip install 'k24lab[vmas]'")

HETEROGENEOUS = {  # task -> agents, size of an observation
    "vmas/navigation": (3, 10),
    "vmas/dispersion": (4, 16),
    "vmas/het_mass": (2, 4),
    "vmas/sampling:grid_spacing=0.5": (3, 24),  # its own grid of 0.05 takes a second to reset
    "vmas/reverse_transport": (4, 10),
    "vmas/balance": (3, 16),
    "vmas/give_way": (2, 4),
}
FIELDS = ("obs", "state", "avail_actions", "reward", "terminated", "truncated")


class Counter(BaseScenario):
    """Agents `a` (sees [t], 15 actions, gets t) and `b` (sees [t, start, noise], 9 actions, gets 3 t).

    `ends` is when each environment ends; `a` draws random numbers at each of its moves, and so does the building.
    """

    def make_world(self, batch_dim, device, ends=None, sides=False, crowded=False, **options):
        if options:
            raise TypeError(f"no options {options}")
        self.ends = torch.full((batch_dim,), 99) if ends is None else torch.tensor(ends)
        self.crowded = crowded
        self.built = torch.rand(batch_dim) + np.random.rand() + random.random()  # noqa: NPY002
        world = World(batch_dim, device)
        world.add_agent(Agent("a", discrete_action_nvec=[5, 3], adversary=sides))
        world.add_agent(Agent("b"))
        return world

    def reset_world_at(self, env_index=None):
        self.t = torch.zeros(self.world.batch_dim)
        self.start = self.built + torch.rand(self.world.batch_dim) + np.random.rand() + random.random()  # noqa: NPY002
        if self.crowded:
            warnings.warn("It is taking many iterations to spawn the entity", stacklevel=1)

    def process_action(self, agent):
        if agent.name == "a" and agent.action.u.any():
            torch.rand(1)

    def post_step(self):
        self.t += 1

    def observation(self, agent):
        if agent.name == "a":
            return self.t.unsqueeze(1)
        return torch.stack([self.t, self.start, torch.rand(self.world.batch_dim)], dim=1)

    def reward(self, agent):
        return self.t if agent.name == "a" else 3 * self.t.unsqueeze(1)  # VMAS's scenarios return both shapes

    def done(self):
        return self.t >= self.ends


def counter(n_envs: int = 2, **options) -> VmasEnv:
    return VmasEnv(Counter, n_envs, **options)


def still(env: VecEnv) -> torch.Tensor:
    return torch.zeros(env.spec.n_envs, env.spec.n_agents, dtype=torch.long)


def play(env: VecEnv, seed: int, n_steps: int = 12, action_seed: int = 0) -> list[Step]:
    generator, steps = torch.Generator().manual_seed(action_seed), [env.reset(seed)]
    shape = (env.spec.n_envs, env.spec.n_agents)
    for _ in range(n_steps):
        steps.append(env.step(torch.randint(min(env.spec.n_actions), shape, generator=generator)))
    return steps


def same(first: list[Step], second: list[Step]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in FIELDS)


def global_state() -> tuple:
    """Of torch and numpy; Python's own generator is left out, for beartype draws from it in these tests."""
    return torch.get_rng_state().tolist(), torch.initial_seed(), np.random.get_state()[1].tolist()  # noqa: NPY002


# Tasks by name


def test_scenarios_that_are_no_team_tasks_are_refused():
    with pytest.raises(ConfigError, match="unknown task 'vmas/simple_tag'; did you mean 'mpe/simple_tag'"):
        make_env("vmas/simple_tag", n_envs=2)
    with pytest.raises(ConfigError, match="did you mean 'vmas/navigation'"):
        make_env("vmas/navigaton", n_envs=2)
    assert {f"vmas/{name}" for name in VMAS_TASKS} <= set(task_names())


def test_without_vmas_the_error_names_the_extra(monkeypatch):
    adapter._load.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "vmas"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vmas", None)
    with pytest.raises(ConfigError, match=r"pip install 'k24lab\[vmas\]'"):
        make_env("vmas/navigation:n_agents=4", n_envs=2)


@needs_vmas
@pytest.mark.parametrize("task", HETEROGENEOUS)
def test_tasks_of_heterogeneity_studies_play(task: str):
    separator = "," if ":" in task else ":"
    env = make_env(f"{task}{separator}episode_limit=6", n_envs=3)
    n_agents, obs_dim = HETEROGENEOUS[task]
    assert (env.spec.n_agents, env.spec.obs_dims) == (n_agents, (obs_dim,) * n_agents)
    assert (env.spec.n_actions, env.spec.state_dim) == ((9,) * n_agents, n_agents * obs_dim)
    steps = play(env, seed=1, n_steps=6)
    assert all(step.obs.isfinite().all() and step.obs.dtype == torch.float32 for step in steps)
    assert all(step.reward.isfinite().all() and step.reward.shape == (3,) for step in steps)
    assert (steps[-1].terminated | steps[-1].truncated).all()
    assert same(play(env, seed=1, n_steps=6), steps)


@needs_vmas
@pytest.mark.slow
@pytest.mark.parametrize("name", VMAS_TASKS)
def test_every_task_plays_and_is_the_same_after_other_episodes(name: str):
    env, fresh = (make_env(f"vmas/{name}", n_envs=2) for _ in range(2))
    play(env, seed=8, n_steps=3, action_seed=1)
    assert same(play(env, seed=7, n_steps=3), play(fresh, seed=7, n_steps=3))


@needs_vmas
@pytest.mark.parametrize(
    "task, message",
    [
        ("navigation:n_agent=3", "'n_agent'; did you mean 'n_agents'"),
        ("navigation:max_steps=3", "unknown option 'max_steps'"),
        ("navigation:n_agents=2.5", "'vmas/navigation': VMAS refuses the options.*'n_agents': 2.5.*TypeError"),
        ("navigation:agents_with_same_goal=9", "VMAS refuses.*AssertionError"),
        ("navigation:episode_limit=0", "episode_limit = 0 must be at least 1"),
        ("navigation:episode_limit=-3", "episode_limit = -3 must be at least 1"),
        ("football:ai_red_agents=False", "ai_red_agents=False it is not cooperative"),
        ("football:dict_obs=True", "an observation is no vector"),
    ],
)
def test_bad_options_are_one_clear_error(task: str, message: str):
    before = global_state()
    with pytest.raises(ConfigError, match=message):
        make_env(f"vmas/{task}", n_envs=2)
    assert global_state() == before


@needs_vmas
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"VMAS refuses the options .* on 'gpu': RuntimeError: Expected one of cpu"):
        make_env("vmas/navigation", n_envs=2, device="gpu")


@needs_vmas
def test_a_scenario_that_cannot_be_used_is_refused():
    with pytest.raises(ConfigError, match="two sides"):
        counter(sides=True)
    with pytest.raises(ConfigError, match="taking many iterations"):  # VMAS itself would never return
        counter(crowded=True)
    with pytest.raises(ConfigError, match="Batch dim must be greater than 0"):
        counter(n_envs=0)


# Observations, actions, reward


@needs_vmas
def test_unequal_observations_and_actions_are_padded():
    env = counter(n_envs=2)
    assert (env.spec.obs_dims, env.spec.n_actions, env.spec.state_dim) == ((1, 3), (15, 9), 4)
    env.reset(0)
    step = env.step(torch.tensor([[14, 8], [0, 3]]))
    assert step.obs[:, 0].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert step.obs[:, 1, 0].tolist() == [1, 1] and step.obs[:, 1, 1:].all()
    assert torch.equal(step.state, torch.cat([step.obs[:, 0, :1], step.obs[:, 1]], dim=1))  # without padding
    assert step.avail_actions.tolist() == [[[True] * 15, [True] * 9 + [False] * 6]] * 2


@needs_vmas
def test_team_reward_is_the_mean_over_agents():
    env = counter(n_envs=2)
    assert [step.reward.tolist() for step in play(env, 0, 3)] == [[0, 0], [2, 2], [4, 4], [6, 6]]  # of t and 3 t


@needs_vmas
@pytest.mark.parametrize(
    "name, options",
    [
        ("navigation", VMAS_TASKS["navigation"]),
        ("navigation", {"collisions": True, "shared_rew": False}),
        ("dispersion", VMAS_TASKS["dispersion"]),
        ("balance", {}),
    ],
)
def test_episodes_are_those_of_vmas(name: str, options: dict):
    env = VmasEnv(adapter._load(name)[0], 4, **options)
    bare = vmas.make_env(name, num_envs=4, continuous_actions=False, **options)
    steps, obs = play(env, seed=3), bare.reset(seed=3)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(steps[0].obs, torch.stack(obs, dim=1))
    for step in steps[1:]:
        actions = torch.randint(9, (4, env.spec.n_agents), generator=generator)
        obs, rewards, done, _ = bare.step(list(actions.unbind(1)))
        assert torch.equal(step.obs, torch.stack(obs, dim=1)) and torch.equal(step.terminated, done)
        assert torch.allclose(step.reward, sum(rewards) / len(rewards))
    assert name == "dispersion" or sum(step.reward.abs().sum() for step in steps) > 0


@needs_vmas
@pytest.mark.parametrize("name", ["navigation", "road_traffic", "wind_flocking"])  # road_traffic's agents steer
def test_every_action_has_the_forces_that_vmas_gives_it(name: str):
    env = make_env(f"vmas/{name}", n_envs=4)  # fewer than actions
    env.reset(0)
    for agent, n in zip(env._env.agents, env.spec.n_actions, strict=True):
        for action in torch.arange(n).expand(4, -1).T.unsqueeze(2):
            vmas.simulator.environment.Environment._set_action(env._env, action, agent)
            expected = agent.action.u
            env._env._set_action(action, agent)
            assert torch.equal(agent.action.u, expected) and agent.action.u is not expected


@needs_vmas
def test_a_shared_reward_counts_once():
    env = make_env("vmas/navigation", n_envs=16)
    steps = play(env, seed=0, n_steps=10)

    def distance(obs: torch.Tensor) -> torch.Tensor:  # an agent sees position, velocity, position less each goal
        own = obs[..., 4:].unflatten(-1, (3, 2))[:, range(3), range(3)]
        return torch.linalg.vector_norm(own, dim=-1).sum(dim=1)

    paid = torch.stack([step.reward for step in steps]).sum(dim=0)
    assert torch.allclose(paid, distance(steps[0].obs) - distance(steps[-1].obs), atol=1e-4)
    assert paid.std() > 0.01


@needs_vmas
def test_dispersion_pays_one_for_each_piece_of_food():
    env = make_env("vmas/dispersion", n_envs=32)
    steps = play(env, seed=0, n_steps=40)
    eaten = steps[-1].obs[:, 0, 4:].unflatten(-1, (4, 3))[..., 2].sum(dim=-1)
    paid = torch.stack([step.reward for step in steps]).sum(dim=0)
    running = ~steps[-2].terminated  # the observation of eaten food is that after the reward
    assert torch.allclose(paid[running], eaten[running]) and paid.sum() > 0


@needs_vmas
def test_nothing_that_an_agent_sees_in_navigation_tells_who_it_is():
    obs = make_env("vmas/navigation", n_envs=512).reset(0).obs
    goals = obs[:, :, None, :2] - obs[..., 4:].unflatten(-1, (3, 2))
    assert torch.allclose(goals, goals[:, :1].expand_as(goals), atol=1e-6)  # one order for all
    own = goals[:, range(3), range(3)]
    assert own.mean(dim=0).abs().max() < 0.12 and obs[..., :2].mean(dim=0).abs().max() < 0.12  # uniform: error 0.026


@needs_vmas
@pytest.mark.parametrize("action", [[15, 0], [0, 9], [-1, 0], [0, -1]])
def test_an_action_that_is_not_available_is_an_error(action: list[int]):
    env, before = counter(n_envs=2), global_state()
    env.reset(0)
    agent = "a" if action[0] else "b"
    with pytest.raises(ValueError, match=rf"environment 1, agent '{agent}': action {max(action, key=abs)} is not"):
        env.step(torch.tensor([[0, 0], action]))
    assert env.step(still(env)).state[:, 0].tolist() == [1, 1]  # nothing had moved
    assert global_state() == before


@needs_vmas
def test_step_before_reset_is_an_error():
    with pytest.raises(ValueError, match="before the first reset"):
        counter().step(torch.zeros(2, 2, dtype=torch.long))


@needs_vmas
def test_the_caller_s_actions_are_left_alone():
    env = make_env("vmas/het_mass", n_envs=4)
    env.reset(0)
    for dtype in (torch.int32, torch.int64):
        actions = torch.randint(9, (4, 2)).to(dtype)
        kept = actions.clone()
        env.step(actions)
        assert torch.equal(actions, kept) and actions.shape == (4, 2)


# Ends


@needs_vmas
def test_time_limit_truncates_and_the_scenario_s_end_terminates():
    env = counter(n_envs=4, ends=[1, 2, 3, 9], episode_limit=3)
    flags = [(step.terminated.tolist(), step.truncated.tolist()) for step in play(env, 0, 3)]
    never = [False] * 4
    assert flags == [
        (never, never),
        ([True, False, False, False], never),
        ([True, True, False, False], never),
        ([True, True, True, False], [False, False, False, True]),  # an end at the limit is an end
    ]


@needs_vmas
def test_ended_rows_are_frozen_while_others_go_on():
    env = counter(n_envs=3, ends=[1, 99, 2], episode_limit=4)
    steps = play(env, 0, 6)
    for row, last in ((0, 1), (1, 4), (2, 2)):
        for step in steps[last + 1 :]:
            for name in ("obs", "state", "terminated", "truncated"):
                assert torch.equal(getattr(step, name)[row], getattr(steps[last], name)[row])
            assert step.reward[row] == 0
        assert steps[last].reward[row] == 2 * last
    assert not play(env, 0, 0)[0].terminated.any()  # a reset wakes all


@needs_vmas
def test_actions_of_ended_environments_change_nothing():
    env, episodes = counter(n_envs=2, ends=[1, 99]), []
    for action in (0, 7):
        steps = [env.reset(0), env.step(still(env))]
        steps += [env.step(torch.tensor([[action, action], [0, 0]])) for _ in range(4)]
        episodes.append(steps)
    assert same(*episodes)


@needs_vmas
def test_kept_steps_do_not_change():
    env = make_env("vmas/dispersion", n_envs=4)
    step = env.reset(0)
    copies = [getattr(step, name).clone() for name in FIELDS]
    play(env, 1)
    assert all(torch.equal(getattr(step, name), copy) for name, copy in zip(FIELDS, copies, strict=True))


# Randomness


@needs_vmas
@pytest.mark.parametrize("make", [counter, lambda: make_env("vmas/navigation", n_envs=2)], ids=["noise", "navigation"])
def test_two_instances_do_not_disturb_each_other(make):
    alone = [play(make(), seed=5, action_seed=2), play(make(), seed=6, action_seed=3)]
    envs = [make(), make()]
    generators = [torch.Generator().manual_seed(2), torch.Generator().manual_seed(3)]
    together = [[env.reset(5 + k)] for k, env in enumerate(envs)]
    for _ in range(12):
        for k, env in enumerate(envs):
            actions = torch.randint(9, (2, env.spec.n_agents), generator=generators[k])
            together[k].append(env.step(actions))
    assert same(together[0], alone[0]) and same(together[1], alone[1])


@needs_vmas
def test_global_generators_are_left_as_they_were():
    torch.manual_seed(11)
    before = global_state()
    play(counter(), seed=5)
    env = make_env("vmas/het_mass", n_envs=2)
    play(env, seed=5)
    assert global_state() == before
    python_state = random.getstate()
    with env._random.in_use():
        random.random()
    assert random.getstate() == python_state


@needs_vmas
def test_episodes_do_not_depend_on_the_global_generators():
    env, first = counter(), play(counter(), seed=5)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    steps = [env.reset(5)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
        steps.append(env.step(torch.randint(9, (2, 2), generator=generator)))
    assert same(steps, first)
    assert not torch.equal(env.reset(6).obs, first[0].obs)


@needs_vmas
@pytest.mark.parametrize("task", ["counter", "vmas/wind_flocking", "vmas/het_mass"])
def test_an_episode_follows_from_the_seed_whatever_was_played_before(task: str):
    env, fresh = (counter() if task == "counter" else make_env(task, n_envs=2) for _ in range(2))
    play(env, seed=9, action_seed=4)  # VMAS's own reset leaves traces of this in wind_flocking
    assert same(play(env, seed=5), play(fresh, seed=5))


@needs_vmas
def test_het_mass_draws_masses_for_each_world():
    env = make_env("vmas/het_mass:green_mass=4,blue_mass=2,mass_noise=1", n_envs=200)
    env.reset(3)
    speeds = env.step(torch.full((200, 2), 6)).obs[:, :, 2]  # after one push: force * time step / mass
    masses = 0.1 / speeds
    assert (masses[:, 0].min() >= 3 - 1e-4) and (masses[:, 0].max() <= 5 + 1e-4)
    assert (masses[:, 1].min() >= 1 - 1e-4) and (masses[:, 1].max() <= 3 + 1e-4)
    assert (masses.std(dim=0) - 1 / 3**0.5).abs().max() < 0.1  # uniform, two wide


@needs_vmas
def test_inference_mode_may_come_and_go():
    env = make_env("vmas/navigation", n_envs=2)
    env.reset(0)
    with torch.inference_mode():
        env.step(still(env))
    env.step(still(env))
    with torch.inference_mode():
        env.reset(1)
    obs = env.step(still(env)).obs
    weight = torch.ones(10, requires_grad=True)
    (obs @ weight).sum().backward()  # an inference tensor could not be saved for this
    assert weight.grad is not None
