"""RoleNav against its definition: kinematics, reward, what an observation tells, the two bounds on the return."""

import numpy as np
import pytest
import torch
from torch import Tensor

from k24lab.envs.registry import make_env
from k24lab.envs.rolenav import DIRECTIONS, STEP_LENGTH, RoleNav
from k24lab.errors import ConfigError


def positions_and_goals(obs: Tensor) -> tuple[Tensor, Tensor]:
    """Own positions [E, N, 2], and the goals as each agent sees them [E, N agents, N goals, 2]."""
    position = obs[..., :2]
    return position, position[:, :, None] + obs[..., 2:].unflatten(-1, (-1, 2))


def own_goals(obs: Tensor) -> Tensor:
    goals = positions_and_goals(obs)[1]
    return torch.stack([goals[:, i, i] for i in range(goals.shape[1])], dim=1)  # [E, N, 2]


def towards(position: Tensor, target: Tensor) -> Tensor:
    """The action after which an agent is nearest to its target."""
    after = (position[..., None, :] + STEP_LENGTH * DIRECTIONS).clamp(-1, 1)
    return torch.linalg.vector_norm(after - target[..., None, :], dim=-1).argmin(dim=-1)


def mean_return(env: RoleNav, choose_target, seed: int = 0) -> float:
    step = env.reset(seed)
    target, total = choose_target(step.obs), torch.zeros(env.spec.n_envs)
    while not step.truncated.any():
        step = env.step(towards(step.obs[..., :2], target))
        total += step.reward
    return total.mean().item()


def geometric_median(points: Tensor) -> Tensor:
    """The point [..., 2] with the least sum of distances to points [..., K, 2] (Weiszfeld 1937)."""
    median = points.mean(dim=-2)
    for _ in range(200):
        weight = 1 / torch.linalg.vector_norm(points - median[..., None, :], dim=-1).clamp_min(1e-6)
        median = (weight[..., None] * points).sum(dim=-2) / weight.sum(dim=-1, keepdim=True)
    return median


def median_of_goals(obs: Tensor) -> Tensor:
    return geometric_median(positions_and_goals(obs)[1])


@pytest.mark.parametrize(
    "action, move", [(0, (0, 0)), (1, (0.12, 0)), (2, (-0.12, 0)), (3, (0, 0.12)), (4, (0, -0.12))]
)
def test_each_action_moves_by_one_step_and_walls_stop(action: int, move: tuple[float, float]):
    env = RoleNav(n_envs=64, n_agents=3)
    before = env.reset(0).obs[..., :2]
    for _ in range(20):  # from anywhere to the wall
        after = env.step(torch.full((64, 3), action)).obs[..., :2]
        assert torch.allclose(after, (before + torch.tensor(move)).clamp(-1, 1), atol=1e-6)
        before = after
    assert action == 0 or (after @ torch.tensor(move) / STEP_LENGTH == 1).all()


def test_observation_is_own_position_and_all_goals_in_one_order():
    step = RoleNav(n_envs=16, n_agents=4).reset(3)
    position, goals = positions_and_goals(step.obs)
    assert step.obs.shape == (16, 4, 2 + 2 * 4)
    assert torch.allclose(goals, goals[:, :1].expand_as(goals), atol=1e-6)  # no agent sees another order
    assert position.abs().max() <= 1 and goals.abs().max() <= 1 + 1e-6
    assert torch.equal(step.state, step.obs.flatten(1))


def test_every_action_is_available_to_everyone_at_every_step():
    env = RoleNav(n_envs=3, n_agents=2, episode_limit=2)
    steps = [env.reset(0), env.step(torch.ones(3, 2, dtype=torch.int64)), env.step(torch.ones(3, 2, dtype=torch.int64))]
    assert all(step.avail_actions.shape == (3, 2, 5) and step.avail_actions.all() for step in steps)
    assert not any(step.terminated.any() for step in steps)


@pytest.mark.parametrize("options", [{}, {"n_types": 2}, {"n_roles": 2}])
def test_a_scene_shows_agents_and_goals_where_they_are_and_whose_goal_is_whose(options):
    env = RoleNav(n_envs=4, n_agents=3, **options)
    env.reset(5)
    step = env.step(torch.tensor([[1, 2, 3]] * 4))
    for e in range(4):
        scene = env.scene(e)
        assert (scene.low, scene.high) == ((-1, -1), (1, 1))
        agents, goals = scene.of_kind("agent"), scene.of_kind("goal")
        assert len(agents) == 3 and len(goals) == (2 if options else 3) and len(scene.things) == len(agents + goals)
        for i, agent in enumerate(agents):
            assert (agent.x, agent.y) == pytest.approx(step.obs[e, i, :2].tolist()) and agent.owners == (i,)
        for k, goal in enumerate(goals):
            seen = step.obs[e, 0, :2] + step.obs[e, 0, 2 + 2 * k : 4 + 2 * k]
            assert (goal.x, goal.y) == pytest.approx(seen.tolist(), abs=1e-6)
            role = step.unit_type[e].tolist() if "n_types" in options else [i % len(goals) for i in range(3)]
            assert goal.owners == tuple(i for i in range(3) if role[i] == k)
            assert all(agents[i].label == (f"goal {k}" if "n_types" in options else "") for i in goal.owners)
    assert [env.action_name(0, a) for a in range(5)] == ["stay", "→", "←", "↑", "↓"]


@pytest.mark.parametrize("options", [{"n_roles": 3}, {"n_roles": 0, "n_types": 0}])
def test_a_role_for_each_agent_is_the_task_without_roles(options):
    a, b = RoleNav(n_envs=4, n_agents=3), RoleNav(n_envs=4, n_agents=3, **options)
    actions = torch.tensor([[1, 3, 2]] * 4)
    assert torch.equal(a.reset(1).obs, b.reset(1).obs)
    assert torch.equal(a.step(actions).reward, b.step(actions).reward)


def test_one_agent_for_one_step_is_a_task():
    env = RoleNav(n_envs=1, n_agents=1, episode_limit=1, n_types=1)
    assert not env.reset(0).truncated.any()
    assert env.step(torch.zeros(1, 1, dtype=torch.int64)).truncated.all()


def test_nothing_but_the_reward_tells_agents_apart():
    env = RoleNav(n_envs=2048, n_agents=3)
    obs = env.reset(1).obs
    # Same law for each agent: uniform coordinates have mean 0 and variance 1/3 (standard errors 0.013 and 0.007).
    position, goal = positions_and_goals(obs)[0], own_goals(obs)
    for points in (position, goal):
        assert points.mean(dim=0).abs().max() < 0.05
        assert (points.var(dim=0) - 1 / 3).abs().max() < 0.03
    step = env.step(torch.zeros(2048, 3, dtype=torch.long))
    assert torch.equal(step.obs, obs) and not step.reward.any()


def test_reward_is_the_team_s_decrease_of_distance_and_telescopes():
    env = RoleNav(n_envs=32, n_agents=3)
    step = env.reset(0)
    goals = own_goals(step.obs)
    distances = [torch.linalg.vector_norm(goals - step.obs[..., :2], dim=-1)]
    total = torch.zeros(32)
    for t in range(25):
        step = env.step(torch.randint(5, (32, 3), generator=torch.Generator().manual_seed(t)))
        distances.append(torch.linalg.vector_norm(goals - step.obs[..., :2], dim=-1))
        assert torch.allclose(step.reward, (distances[-2] - distances[-1]).sum(dim=1), atol=1e-5)
        total += step.reward
    assert torch.allclose(total, (distances[0] - distances[-1]).sum(dim=1), atol=1e-5)
    assert total.std() > 0.1  # the sum is not trivially zero


def test_all_episodes_are_truncated_together_at_the_limit():
    env = RoleNav(n_envs=2, episode_limit=3)
    stay, step = torch.zeros(2, 3, dtype=torch.long), env.reset(0)
    flags = [step.truncated.tolist()]
    for _ in range(3):
        step = env.step(stay)
        flags.append(step.truncated.tolist())
        assert not step.terminated.any()
    assert flags == [[False] * 2] * 3 + [[True] * 2]


def test_same_seed_same_episode_whatever_happened_before():
    env, other = RoleNav(n_envs=4), RoleNav(n_envs=4)
    random_state = torch.get_rng_state()
    first = env.reset(7)
    env.step(torch.ones(4, 3, dtype=torch.long))
    other.reset(1)
    assert torch.equal(env.reset(7).obs, first.obs)
    assert torch.equal(other.reset(7).obs, first.obs)
    assert not torch.equal(env.reset(8).obs, first.obs)
    assert torch.equal(torch.get_rng_state(), random_state)  # an environment must not disturb the learner's randomness


def test_kept_steps_do_not_change():
    env = RoleNav(n_envs=4)
    step = env.reset(0)
    copies = step.obs.clone(), step.state.clone()
    env.step(torch.ones(4, 3, dtype=torch.long))
    env.reset(1)
    assert torch.equal(step.obs, copies[0]) and torch.equal(step.state, copies[1])


def test_optimum_is_reached_with_identity():
    # E|p - g| = 1.0428 for two uniform points in a square of side 2, so 3.128 for three agents. On the agents' grid
    # of 0.12 the nearest point is 0.3826 * 0.12 away on average: 2.990. Standard error: 0.86 / sqrt(16384) = 0.007.
    result = mean_return(RoleNav(n_envs=16384), own_goals)
    assert result == pytest.approx(3 * (1.0428 - 0.3826 * 0.12), abs=0.03)


def ends_on_an_axis(x, n_steps, step=0.12):
    """Where so many steps on one axis can end, and after how many: straight, or into a wall and back."""
    ends = [(x, 0)]
    for direction in (1, -1):
        straight = [(x + direction * step * k, k) for k in range(1, n_steps + 1)]
        inside = [end for end in straight if abs(end[0]) < 1]
        to_wall = len(inside) + 1
        back = [(direction * (1 - step * k), to_wall + k) for k in range(int(2 / step) + 1)]
        ends += inside + back
    return np.array(ends)


def test_walls_let_an_agent_come_nearer_to_its_goal():
    rng, left = np.random.default_rng(0), []
    for start, goal in rng.uniform(-1, 1, (1000, 2, 2)):
        x, y = (ends_on_an_axis(start[axis], n_steps=25) for axis in (0, 1))
        distance = np.hypot((x[:, 0] - goal[0])[:, None], y[:, 0] - goal[1])
        left.append(distance[x[:, 1][:, None] + y[:, 1] <= 25].min())
    assert 3 * (1.0428 - np.mean(left)) == pytest.approx(3.03, abs=0.015)  # standard error 0.002


def test_without_identity_the_median_of_the_goals_bounds_the_return():
    env = RoleNav(n_envs=16384)
    obs = env.reset(0).obs
    position, goals = positions_and_goals(obs)[0], own_goals(obs)
    median = geometric_median(goals)[:, None]
    start, end = (torch.linalg.vector_norm(goals - point, dim=-1).sum(dim=1) for point in (position, median))
    bound = (start - end).mean().item()
    assert bound == pytest.approx(1.45, abs=0.03)  # standard error 0.007
    result = mean_return(env, median_of_goals)
    assert bound - 0.05 < result < bound  # a grid of 0.12 keeps the agents a little away from the median
    assert result < mean_return(env, own_goals) - 1.5


def test_options_of_the_task():
    env = make_env("rolenav:n_agents=5,episode_limit=7", n_envs=2)
    assert (env.spec.n_agents, env.spec.episode_limit, env.spec.obs_dims) == (5, 7, (12,) * 5)
    for task in ("rolenav:n_agents=0", "rolenav:episode_limit=0"):
        with pytest.raises(ConfigError, match="at least 1"):
            make_env(task, n_envs=2)
    with pytest.raises(ConfigError, match="did you mean 'n_agents'"):
        make_env("rolenav:n_agent=3", n_envs=2)


def test_nothing_moves_and_nothing_is_paid_after_the_limit():
    env = RoleNav(n_envs=4, episode_limit=2)
    env.reset(0)
    last = [env.step(torch.ones(4, 3, dtype=torch.long)) for _ in range(2)][-1]
    after = env.step(torch.ones(4, 3, dtype=torch.long))
    assert torch.equal(after.obs, last.obs) and after.truncated.all() and not after.reward.any()


# --- unit types -------------------------------------------------------------------------------------------------


def test_types_decide_whose_goal_is_whose_and_nothing_that_is_observed_tells_them():
    env = RoleNav(n_envs=4096, n_agents=4, n_types=3)
    step = env.reset(2)
    assert env.spec.n_unit_types == 3 and len(env.spec.unit_type_names) == 3
    assert step.obs.shape == (4096, 4, 2 + 2 * 3)
    share = torch.stack([(step.unit_type == k).float().mean(dim=0) for k in range(3)])  # of each agent index
    assert (share - 1 / 3).abs().max() < 0.03
    position, goals = positions_and_goals(step.obs)
    own = goals.gather(2, step.unit_type[..., None, None].expand(-1, -1, 1, 2)).squeeze(2)
    before = torch.linalg.vector_norm(own - position, dim=-1)
    after = env.step(towards(position, own))
    moved = torch.linalg.vector_norm(own - after.obs[..., :2], dim=-1)
    torch.testing.assert_close(after.reward, (before - moved).sum(dim=1))
    assert torch.equal(after.unit_type, step.unit_type)
    assert not torch.equal(env.reset(3).unit_type, step.unit_type)
    assert RoleNav(n_envs=1).reset(0).unit_type is None


def test_bounds_per_agent_are_those_of_as_many_agents_as_types():
    typed, plain = RoleNav(n_envs=4000, n_agents=6, n_types=3), RoleNav(n_envs=8000, n_agents=3)
    assert mean_return(typed, median_of_goals) / 6 == pytest.approx(mean_return(plain, median_of_goals) / 3, abs=0.02)


# --- roles ------------------------------------------------------------------------------------------------------


def test_agents_of_one_role_share_a_goal_for_good():
    env, own = RoleNav(n_envs=4000, n_agents=6, n_roles=2), torch.arange(6) % 2
    step = env.reset(2)
    assert step.obs.shape == (4000, 6, 2 + 2 * 2) and step.unit_type is None and not env.spec.n_unit_types
    position, goals = positions_and_goals(step.obs)
    target = goals[:, 0, own]
    before = torch.linalg.vector_norm(target - position, dim=-1)
    after = env.step(towards(position, target))
    moved = torch.linalg.vector_norm(target - after.obs[..., :2], dim=-1)
    torch.testing.assert_close(after.reward, (before - moved).sum(dim=1))
    pair = RoleNav(n_envs=4000, n_agents=2)  # the bounds per agent are those of as many agents as roles
    for policy, of_pair in (
        (median_of_goals, median_of_goals),
        (lambda o: positions_and_goals(o)[1][:, 0, own], own_goals),
    ):
        assert mean_return(env, policy) / 6 == pytest.approx(mean_return(pair, of_pair) / 2, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("n_roles=4", r"n_roles = 4 must be in 0 … n_agents = 3"),
        ("n_roles=-1", "n_roles = -1"),
        ("n_roles=2,n_types=2", "belong to types or to roles"),
    ],
)
def test_roles_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_env(f"rolenav:{options}", n_envs=2)


@pytest.mark.parametrize("task", ["rolenav", "rolenav:n_types=2"])
def test_an_episode_stays_on_its_device(task):
    env = make_env(task, 4, device="meta")  # like a GPU, it refuses to compute with tensors of the CPU
    first, then = env.reset(0), env.step(torch.zeros(4, 3, dtype=torch.int64, device="meta"))
    for step in (first, then):
        assert {value.device.type for value in vars(step).values() if value is not None} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("task", ["rolenav:n_types=2", "vmas/navigation"])
def test_an_episode_on_a_gpu_never_leaves_it(task):
    env, here = make_env(task, 4, device="cuda"), make_env("rolenav:n_types=2", 4)
    first = env.reset(0)
    for step in (first, env.step(torch.zeros(4, 3, dtype=torch.int64, device="cuda"))):
        assert {value.device.type for value in vars(step).values() if value is not None} == {"cuda"}
    if task.startswith("rolenav"):
        torch.testing.assert_close(first.obs.cpu(), here.reset(0).obs)
