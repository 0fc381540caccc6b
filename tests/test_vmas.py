"""The VMAS adapter against a small scenario whose every number is known, and against VMAS itself."""

import sys

import pytest
import torch
from small_vmas import FIELDS, counter, global_state, needs_vmas, play, same, still, vmas

from k24lab.envs import vmas as adapter
from k24lab.envs.registry import make_env, task_names
from k24lab.envs.vmas import VMAS_TASKS, VmasEnv
from k24lab.errors import ConfigError

HETEROGENEOUS = {  # task -> agents, size of an observation
    "vmas/navigation": (3, 10),
    "vmas/dispersion": (4, 16),
    "vmas/het_mass": (2, 4),
    "vmas/sampling:grid_spacing=0.5": (3, 24),  # its own grid of 0.05 takes a second to reset
    "vmas/reverse_transport": (4, 10),
    "vmas/balance": (3, 16),
    "vmas/give_way": (2, 4),
}


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
