"""The particle environments in batches against mpe2 itself, from the same states with the same actions."""

import numpy as np
import pytest
import torch
from mpe_pairs import FIELDS, N_ENVS, Pair, random_actions
from scipy.optimize import linear_sum_assignment
from scipy.stats import ks_2samp

from k24lab.envs.base import Step
from k24lab.envs.mpe2 import MPE2_TASKS, mpe2_builder
from k24lab.envs.mpe_places import assigned
from k24lab.envs.mpe_tasks import MPE_TASKS, mpe_builder
from k24lab.envs.registry import make_env

CASES = [
    *MPE_TASKS,
    "simple_spread:N=1",
    "simple_spread:N=5,local_ratio=0.9,max_cycles=13",
    "simple_spread:N=2,terminate_on_success=True",
    "simple_spread:curriculum=True",
    "simple_spread:N=4,num_agent_neighbors=2,num_landmark_neighbors=1",
    "simple_spread:num_agent_neighbors=4,num_landmark_neighbors=5",
    "simple_tag:prey=random",
    "simple_tag:num_good=2,num_adversaries=4,num_obstacles=1",
    "simple_tag:num_good=3,num_adversaries=1,num_obstacles=0,prey=random,max_cycles=30",
    "simple_tag:curriculum=True,terminate_on_success=True",
    "simple_tag:num_good=2,num_agent_neighbors=3,num_landmark_neighbors=1",
    "simple_tag:num_good=2,num_agent_neighbors=6,num_landmark_neighbors=4",
    "simple_world_comm:num_good=1,num_adversaries=2,num_obstacles=2,num_food=1,num_forests=3,prey=random",
    "simple_world_comm:num_forests=0,max_cycles=10",
    "simple_reference:local_ratio=0.1,max_cycles=20",
    "simple_formation:N=6,max_cycles=30",
    "simple_formation:N=3",
    "simple_formation:N=2,terminate_on_success=True",
    "simple_line:N=2,terminate_on_success=True",
    "simple_line:N=7",
    "simple_line:N=1",
    "collect_treasure:num_collectors=4,num_deposits=3,num_treasures=2,max_cycles=50",
    "collect_treasure:num_collectors=1,num_deposits=1,num_treasures=1,max_cycles=100",
]


def assert_same(ours: Step, theirs: Step) -> None:
    for field in FIELDS:
        a, b = getattr(ours, field), getattr(theirs, field)
        assert a.dtype == b.dtype and a.shape == b.shape, field
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=lambda text, field=field: f"{field}: {text}")


@pytest.mark.parametrize("task", CASES)
def test_a_thousand_steps_are_those_of_mpe2(task):
    pair, generator, n_steps, rewards = Pair(task), torch.Generator().manual_seed(0), 0, []
    assert pair.ours.spec.obs_dims == pair.theirs.spec.obs_dims
    assert pair.ours.spec.n_actions == pair.theirs.spec.n_actions
    assert pair.ours.spec.episode_limit == pair.theirs.spec.episode_limit
    assert pair.ours.spec.shortest_episode == (1 if "terminate" in task else pair.ours.spec.episode_limit)
    assert pair.ours.spec.state_dim == pair.theirs.spec.state_dim
    episode = 0
    while n_steps < 1000:
        scale = (1.0, 0.4, 0.15)[episode % 3]  # in small squares everything touches everything
        ours, theirs = pair.reset(episode, scale)
        if scale == 1:
            assert_same(ours, theirs)
        while not (ours.terminated | ours.truncated).all():
            actions = random_actions(ours, generator)
            n_steps += int((~(ours.terminated | ours.truncated)).sum())
            ours, theirs = pair.step(actions)
            assert_same(ours, theirs)
            rewards.append(ours.reward)
        episode += 1
    assert torch.cat(rewards).std() > 0


@pytest.mark.parametrize("task", [*MPE_TASKS, "simple_tag:num_good=2"])
def test_scenes_and_names_of_actions_are_those_of_mpe2(task):
    pair, generator = Pair(task), torch.Generator().manual_seed(0)
    ours, _ = pair.reset(3, scale=0.4)
    for _ in range(20):
        for e in range(N_ENVS):
            a, b = pair.ours.scene(e), pair.theirs.scene(e)
            assert (a.low, a.high, len(a.things)) == (b.low, b.high, len(b.things))
            for mine, other in zip(a.things, b.things, strict=True):
                assert (mine.x, mine.y) == pytest.approx((other.x, other.y), abs=1e-9)
                assert vars(mine) | {"x": 0, "y": 0} == vars(other) | {"x": 0, "y": 0}
        actions = random_actions(ours, generator)
        ours, _ = pair.step(actions)
    for i, n in enumerate(pair.ours.spec.n_actions):
        assert [pair.ours.action_name(i, a) for a in range(n)] == [pair.theirs.action_name(i, a) for a in range(n)]


BOUNDS = {  # of landmarks: that of agents is 1
    "collect_treasure": 0.95,
    "simple_formation": 0.5,
    "simple_line": 1.0,
    "simple_reference": 1.0,
    "simple_speaker_listener": 1.0,
    "simple_spread": 1.0,
    "simple_tag": 0.9,
    "simple_world_comm": 0.9,
}


@pytest.mark.parametrize("name", MPE_TASKS)
def test_episodes_begin_where_those_of_mpe2_do(name):
    ours, rng = make_env(f"mpe/{name}", 4000), np.random.default_rng(1)
    ours.reset(1)
    (env,) = make_env(f"mpe2/{name}", 1).envs
    theirs, choices = [], []
    for _ in range(1000):
        world = env.env.world
        env.env._env.scenario.reset_world(world, rng)
        theirs.append([body.state.p_pos for body in world.entities])
        goals = [world.landmarks.index(agent._goal_b) for agent in world.agents if getattr(agent, "_goal_b", None)]
        choices.append(goals or [getattr(body, "type", 0) for body in world.landmarks])
    assert not ours._velocity.any() and not ours._words.any()
    for points, bound in ((ours._position, 1.0), (ours._marks, BOUNDS[name])):
        assert 0.98 * bound < points.abs().amax() <= bound
    bodies = torch.cat([ours._position, ours._marks], dim=1).flatten(1)
    for mine, other in zip(bodies.T, np.array(theirs).reshape(1000, -1).T, strict=True):
        assert ks_2samp(mine.numpy(), other).pvalue > 1e-4
    if name != "simple_line":  # whose second landmark follows the first
        assert (torch.corrcoef(bodies.T) - torch.eye(bodies.shape[1])).abs().max() < 0.08  # standard error 0.016
    drawn = getattr(ours, "_goal", getattr(ours, "_kind", torch.zeros(4000, 1, dtype=torch.int64)))
    for mine, other in zip(drawn.T, np.array(choices).T, strict=False):
        shares = mine.bincount() / len(mine), np.bincount(other) / len(other)
        assert np.abs(shares[0].numpy() - shares[1]).max() < 0.08  # standard error 0.018


def on_landmarks(world) -> np.ndarray:
    return np.array([body.state.p_pos for body in world.landmarks])


def on_a_ring(world) -> np.ndarray:
    angles = 1.0 + 2 * np.pi * np.arange(4) / 4
    return world.landmarks[0].state.p_pos + 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def on_a_line(world) -> np.ndarray:
    start, end = (body.state.p_pos for body in world.landmarks)
    return start + np.linspace(0, 1, 4)[::-1, None] * (end - start)


def around_prey(world) -> np.ndarray:
    return np.array([(0.12, 0.0), (0.0, 0.12), (-0.12, 0.0), (0.0, 0.0)])


@pytest.mark.parametrize(
    "name, places, noise",
    [
        ("simple_spread", on_landmarks, 0.09),
        ("simple_formation", on_a_ring, 0.03),
        ("simple_line", on_a_line, 0.05),
        ("simple_tag", around_prey, 0.06),
    ],
)
def test_success_ends_an_episode_where_it_does_in_mpe2(name, places, noise):
    task = f"{name}:terminate_on_success=True,max_cycles=3"
    pair, rng, ended = Pair(task), np.random.default_rng(0), []
    stay = torch.zeros(N_ENVS, pair.ours.spec.n_agents, dtype=torch.int64)
    for seed in range(30):
        pair.reset(seed, places=lambda world: (there := places(world)) + rng.uniform(-noise, noise, there.shape))
        steps = [pair.step(stay) for _ in range(3)]  # at the third the time is over
        for ours, theirs in steps:
            assert_same(ours, theirs)
        ended.append(steps[0][0].terminated)
    assert 0.1 < torch.cat(ended).double().mean() < 0.9


@pytest.mark.parametrize("name", MPE2_TASKS)
def test_options_are_those_of_mpe2(name):
    ours, theirs = mpe_builder(name).parameters, mpe2_builder(name).parameters
    assert set(ours) - {"device"} == set(theirs) - {"workers", "continuous_actions"}
    for option in set(ours) & set(theirs) - {"n_envs"}:
        assert ours[option].default == theirs[option].default


@pytest.mark.parametrize("n", [1, 2, 4, 5, 6])
def test_the_best_assignment_has_the_smallest_sum(n):
    distance = torch.rand(50, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    for mine, costs in zip(assigned(distance), distance.numpy(), strict=True):
        np.testing.assert_allclose(mine, costs[linear_sum_assignment(costs)])
