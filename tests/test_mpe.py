"""The particle environments in batches against mpe2 itself, from the same states with the same actions."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import ks_2samp

from k24lab.envs.base import Step
from k24lab.envs.mpe import MpeEnv
from k24lab.envs.mpe2 import MPE2_TASKS, mpe2_builder
from k24lab.envs.mpe_places import assigned
from k24lab.envs.mpe_tasks import MPE_TASKS, mpe_builder
from k24lab.envs.registry import make_env
from k24lab.envs.vector_env import SerialVector
from k24lab.errors import ConfigError

N_ENVS = 4
FIELDS = ("obs", "state", "reward", "terminated", "truncated", "avail_actions")
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


class Pair:
    """A task of `mpe` and the same one of mpe2, which is put into its state and plays its scripted agents."""

    def __init__(self, task: str, n_envs: int = N_ENVS):
        self.ours, self.theirs = make_env(f"mpe/{task}", n_envs), make_env(f"mpe2/{task}", n_envs)
        assert isinstance(self.ours, MpeEnv) and isinstance(self.theirs, SerialVector)
        self.task, self.worlds = task, [env.env.world for env in self.theirs.envs]
        if "prey=random" in task:
            for e, env in enumerate(self.theirs.envs):
                env.env._script = lambda world, rng, e=e: self.scripted(e)

    def scripted(self, e: int) -> dict[str, int]:
        """What our random prey does next in environment e."""
        prey = [agent.name for agent in self.worlds[e].agents if not agent.adversary]
        return dict(zip(prey, self.ours._prey_moves[self.ours._t, e].tolist(), strict=True))

    def reset(self, seed: int, scale: float = 1.0, places=None) -> tuple[Step, Step]:
        """Both at the start of an episode, with distances times `scale`, then with agents at `places(world)` [I, 2].

        The first step of mpe2 knows neither.
        """
        self.ours.reset(seed)
        theirs = self.theirs.reset(seed)
        for world in self.worlds:
            for body in world.entities:
                body.state.p_pos = body.state.p_pos * scale
            if places is not None:
                for agent, place in zip(world.agents, places(world), strict=True):
                    agent.state.p_pos = place
        if "simple_line" in self.task:
            for scenario in (env.env._env.scenario for env in self.theirs.envs):
                scenario._expected_positions = [scale * place for place in scenario._expected_positions]
        positions = [[body.state.p_pos for body in world.entities] for world in self.worlds]
        if hasattr(self.ours, "_goal"):
            self.ours._goal = torch.tensor(
                [[w.landmarks.index(a.goal_b) for a in w.agents if a._goal_b] for w in self.worlds]
            )
        if hasattr(self.ours, "_kind"):
            self.ours._kind = self.kinds()
        self.ours._place(torch.from_numpy(np.array(positions)))
        return self.ours._step(self.ours._no_reward()), theirs

    def step(self, actions: torch.Tensor) -> tuple[Step, Step]:
        """One step of both: mpe2 asks for our prey's next move, then it says where treasures appear."""
        theirs = self.theirs.step(actions)
        if hasattr(self.ours, "_kind") and self.ours._t < self.ours.spec.episode_limit:
            places = [[body.state.p_pos for body in world.landmarks] for world in self.worlds]
            self.ours._next_places[self.ours._t + 1] = torch.from_numpy(np.array(places))
            self.ours._next_kinds[self.ours._t + 1] = self.kinds()
        return self.ours.step(actions), theirs

    def kinds(self) -> torch.Tensor:
        """Of mpe2's treasures."""
        return torch.tensor([[body.type for body in world.landmarks] for world in self.worlds])


def assert_same(ours: Step, theirs: Step) -> None:
    for field in FIELDS:
        a, b = getattr(ours, field), getattr(theirs, field)
        assert a.dtype == b.dtype and a.shape == b.shape, field
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=lambda text, field=field: f"{field}: {text}")


def random_actions(step: Step, generator: torch.Generator) -> torch.Tensor:
    """Available ones, each as often."""
    return torch.rand(step.avail_actions.shape, generator=generator).mul(step.avail_actions).argmax(dim=2)


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


def test_a_line_has_one_length():
    env = make_env("mpe/simple_line", 4000)
    env.reset(0)
    start, end = env._marks.unbind(dim=1)
    torch.testing.assert_close(torch.linalg.vector_norm(end - start, dim=1), torch.full((4000,), 1.25).double())
    assert start.abs().max() <= 0.25


def test_treasures_appear_anywhere_and_are_of_every_kind():
    env = make_env("mpe/collect_treasure:num_deposits=3", 200)
    env.reset(0)
    places, kinds = env._next_places.flatten(0, 2), env._next_kinds.flatten()
    assert (places.mean(dim=0).abs() < 0.02).all() and 0.949 < places.abs().max() <= 0.95
    assert (kinds.bincount() / len(kinds) - 1 / 3).abs().max() < 0.02


def test_random_prey_takes_every_action_as_often():
    env = make_env("mpe/simple_tag:num_good=2,prey=random", 40)
    env.reset(0)
    counts = env._prey_moves.flatten().bincount(minlength=5)
    assert env._prey_moves.shape == (25, 40, 2)
    assert ((counts - 400.0) ** 2 / 400).sum() < 18.5  # one in a thousand, 4 degrees of freedom


@pytest.mark.parametrize("task", [*MPE_TASKS, "simple_tag:prey=random"])
def test_a_seed_decides_an_episode_whatever_happened_before(task):
    env, random_state = make_env(f"mpe/{task}", 3), torch.get_rng_state()

    def play(seed: int) -> list[Step]:
        steps, generator = [env.reset(seed)], torch.Generator().manual_seed(0)
        while not steps[-1].truncated.all():
            steps.append(env.step(random_actions(steps[-1], generator)))
        return steps

    first = play(7)
    kept = [step.obs.clone() for step in first]
    other = play(8)
    env.step(torch.ones(3, env.spec.n_agents, dtype=torch.int64))
    again = play(7)
    assert len(first) == 26 and all(torch.equal(a.obs, b.obs) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(step.obs, obs) for step, obs in zip(first, kept, strict=True))  # a kept step never changes
    assert not any(torch.equal(a.obs, b.obs) for a, b in zip(first, other, strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)


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


def test_nothing_moves_and_nothing_is_paid_after_the_limit():
    env = make_env("mpe/simple_spread:max_cycles=3", 2)
    env.reset(0)
    push = torch.ones(2, 3, dtype=torch.int64)
    steps = [env.step(push) for _ in range(5)]
    assert [step.truncated.tolist() for step in steps] == [[False] * 2] * 2 + [[True] * 2] * 3
    for after in steps[3:]:
        assert torch.equal(after.obs, steps[2].obs) and torch.equal(after.state, steps[2].state)
        assert not after.reward.any() and not after.terminated.any()
    assert steps[2].reward.all()


def test_an_episode_that_succeeds_waits_for_the_others():
    env = make_env("mpe/simple_spread:N=1,terminate_on_success=True,max_cycles=6", 2)
    env.reset(0)
    env._place(torch.tensor([[[0.0, 0.0], [0.18, 0.0]], [[0.0, 0.0], [0.9, 0.9]]], dtype=torch.float64))
    steps = [env.step(torch.tensor([[2], [0]])) for _ in range(2)]  # velocity 0.5, then 0.05 nearer
    steps += [env.step(torch.tensor([[2], [0]])), env.step(torch.tensor([[7], [0]]))]  # 0.04 away; ends
    assert [step.terminated.tolist() for step in steps] == [[False] * 2, [False] * 2, [True, False], [True, False]]
    assert torch.equal(steps[3].obs, steps[2].obs) and steps[3].reward[0] == 0 and steps[3].reward[1] < 0
    steps += [env.step(torch.tensor([[1], [0]])) for _ in range(3)]
    for step in steps[5:]:
        assert step.terminated.tolist() == [True, False] and step.truncated.tolist() == [False, True]
        assert torch.equal(step.obs, steps[2].obs)


def test_all_that_have_succeeded_wait_for_the_reset():
    env = make_env("mpe/simple_spread:N=1,terminate_on_success=True", 1)
    env.reset(0)
    env._place(torch.zeros(1, 2, 2, dtype=torch.float64))
    steps = [env.step(torch.tensor([[0]])) for _ in range(30)]
    assert all(step.terminated.all() and not step.truncated.any() for step in steps)
    assert all(torch.equal(step.obs, steps[0].obs) and not step.reward.any() for step in steps[1:])
    assert not env.reset(0).terminated.any()


def test_a_speaker_cannot_say_what_only_a_listener_can_do():
    env = make_env("mpe/simple_speaker_listener", 1)
    assert env.reset(0).avail_actions.tolist() == [[[True] * 3 + [False] * 2, [True] * 5]]
    env.step(torch.tensor([[2, 4]]))
    with pytest.raises(ValueError, match=r"agent 'speaker_0': action 3 is not available \(allowed: \[0, 1, 2\]\)"):
        env.step(torch.tensor([[3, 4]]))


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


@pytest.mark.parametrize("name", MPE_TASKS)
def test_there_is_no_step_before_the_first_reset(name):
    env = make_env(f"mpe/{name}", 1)
    with pytest.raises(ValueError, match="step before the first reset"):
        env.step(torch.zeros(1, env.spec.n_agents, dtype=torch.int64))


@pytest.mark.parametrize("action", [5, -1])
def test_an_action_that_does_not_exist_is_refused(action):
    env = make_env("mpe/simple_spread", 2)
    env.reset(0)
    with pytest.raises(ValueError, match=rf"environment 1, agent 'agent_2': action {action} is not available"):
        env.step(torch.tensor([[0, 1, 2], [3, 4, action]]))


@pytest.mark.parametrize(
    "task, said",
    [
        ("simple_spread:local_ratio=2", "local_ratio = 2.0 must be in 0 … 1"),
        ("simple_spread:N=0", "n_agents = 0 must be at least 1"),
        ("simple_spread:N=three", "option N = 'three' is a str, not an int"),
        ("simple_spread:max_cycles=0", "episode_limit = 0 must be at least 1"),
        ("simple_spread:num_agent_neighbors=0", "num_agent_neighbors = 0 must be a whole number, at least 1, or None"),
        ("simple_tag:num_landmark_neighbors=0.5", "num_landmark_neighbors = 0.5 must be a whole number"),
        ("simple_tag:num_good=0", "mpe/simple_tag: there is no good agent"),
        ("simple_tag:prey=randm", "unknown prey 'randm'; did you mean 'random'"),
        ("simple_tag:num_adversaries=0", "n_agents = 0 must be at least 1"),
        ("simple_tag:num_obstacles=-1", "num_obstacles = -1 must be at least 0"),
        ("simple_world_comm:num_food=0", "mpe/simple_world_comm: num_food = 0 must be at least 1"),
        ("simple_world_comm:num_adversaries=0", "num_adversaries = 0 must be at least 1"),
        ("simple_world_comm:num_forests=-1", "num_forests = -1 must be at least 0"),
        ("simple_world_comm:num_obstacles=-1", "num_obstacles = -1 must be at least 0"),
        ("simple_world_comm:num_good=0", "mpe/simple_world_comm: there is no good agent"),
        ("simple_reference:local_ratio=-0.1", "mpe/simple_reference: local_ratio = -0.1 must be in 0 … 1"),
        ("simple_line:N=0", "n_agents = 0 must be at least 1"),
        ("collect_treasure:num_treasures=0", "num_treasures = 0 must be at least 1"),
        ("simple_spread:prey=random", "unknown option 'prey'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(task, said):
    with pytest.raises(ConfigError, match=said):
        make_env(f"mpe/{task}", 2)


def test_mpe2_is_not_needed():
    code = """import sys, torch
sys.modules["mpe2"] = sys.modules["pettingzoo"] = sys.modules["gymnasium"] = None
from k24lab.envs.registry import make_env
env = make_env("mpe/simple_tag", 2)
env.reset(0)
env.step(torch.zeros(2, 3, dtype=torch.int64))
env.scene(0)"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", MPE_TASKS)
def test_an_episode_on_a_gpu_is_that_of_the_cpu(name):
    here, there = make_env(f"mpe/{name}", 4), make_env(f"mpe/{name}", 4, device="cuda")
    steps, generator = (here.reset(0), there.reset(0)), torch.Generator().manual_seed(0)
    while True:
        assert {value.device.type for value in vars(steps[1]).values() if value is not None} == {"cuda"}
        for field in FIELDS:
            torch.testing.assert_close(getattr(steps[1], field).cpu(), getattr(steps[0], field), rtol=0, atol=1e-5)
        if steps[0].truncated.all():
            break
        actions = random_actions(steps[0], generator)
        steps = (here.step(actions), there.step(actions.cuda()))
