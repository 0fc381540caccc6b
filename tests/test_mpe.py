"""The particle environments in batches against mpe2 itself, from the same states with the same actions."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from k24lab.envs.base import Step
from k24lab.envs.mpe import MpeEnv
from k24lab.envs.mpe_tasks import MPE_TASKS
from k24lab.envs.registry import make_env
from k24lab.envs.vector_env import SerialVector
from k24lab.errors import ConfigError

N_ENVS = 4
FIELDS = ("obs", "state", "reward", "terminated", "truncated", "avail_actions")
CASES = [
    "simple_spread",
    "simple_spread:N=1",
    "simple_spread:N=5,local_ratio=0.9,max_cycles=13",
    "simple_spread:N=2,terminate_on_success=True",
    "simple_spread:curriculum=True",
    "simple_spread:N=4,num_agent_neighbors=2,num_landmark_neighbors=1",
    "simple_spread:num_agent_neighbors=4,num_landmark_neighbors=5",
    "simple_tag",
    "simple_tag:prey=random",
    "simple_tag:num_good=2,num_adversaries=4,num_obstacles=1",
    "simple_tag:num_good=3,num_adversaries=1,num_obstacles=0,prey=random,max_cycles=30",
    "simple_tag:curriculum=True,terminate_on_success=True",
    "simple_tag:num_good=2,num_agent_neighbors=3,num_landmark_neighbors=1",
    "simple_tag:num_good=2,num_agent_neighbors=6,num_landmark_neighbors=4",
]


class Pair:
    """A task of `mpe` and the same one of mpe2, which is put into its state and plays its scripted agents."""

    def __init__(self, task: str, n_envs: int = N_ENVS):
        self.ours, self.theirs = make_env(f"mpe/{task}", n_envs), make_env(f"mpe2/{task}", n_envs)
        assert isinstance(self.ours, MpeEnv) and isinstance(self.theirs, SerialVector)
        self.worlds = [env.env.world for env in self.theirs.envs]
        if "prey=random" in task:
            for e, env in enumerate(self.theirs.envs):
                env.env._script = lambda world, rng, e=e: self.scripted(e)

    def scripted(self, e: int) -> dict[str, int]:
        """What our random prey does next in environment e."""
        prey = [agent.name for agent in self.worlds[e].agents if not agent.adversary]
        return dict(zip(prey, self.ours._prey_moves[self.ours._t, e].tolist(), strict=True))

    def reset(self, seed: int, scale: float = 1.0) -> tuple[Step, Step]:
        """Both at the start of an episode, with all distances times `scale` (the first step of mpe2 is without it)."""
        self.ours.reset(seed)
        theirs = self.theirs.reset(seed)
        for world in self.worlds:
            for body in world.entities:
                body.state.p_pos = body.state.p_pos * scale
        positions = [[body.state.p_pos for body in world.entities] for world in self.worlds]
        self.ours._place(torch.from_numpy(np.array(positions)))
        return self.ours._step(self.ours._no_reward()), theirs


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
            theirs, ours = pair.theirs.step(actions), pair.ours.step(actions)  # theirs asks for our prey's next move
            assert_same(ours, theirs)
            rewards.append(ours.reward)
        episode += 1
    assert torch.cat(rewards).std() > 0


@pytest.mark.parametrize("task", ["simple_spread", "simple_tag:num_good=2"])
def test_scenes_and_names_of_actions_are_those_of_mpe2(task):
    pair, generator = Pair(task), torch.Generator().manual_seed(0)
    ours, _ = pair.reset(3)
    for _ in range(5):
        for e in range(N_ENVS):
            a, b = pair.ours.scene(e), pair.theirs.scene(e)
            assert (a.low, a.high, len(a.things)) == (b.low, b.high, len(b.things))
            for mine, other in zip(a.things, b.things, strict=True):
                assert (mine.x, mine.y) == pytest.approx((other.x, other.y), abs=1e-9)
                assert vars(mine) | {"x": 0, "y": 0} == vars(other) | {"x": 0, "y": 0}
        actions = random_actions(ours, generator)
        pair.theirs.step(actions)
        ours = pair.ours.step(actions)
    for i, n in enumerate(pair.ours.spec.n_actions):
        assert [pair.ours.action_name(i, a) for a in range(n)] == [pair.theirs.action_name(i, a) for a in range(n)]


@pytest.mark.parametrize("task", ["simple_spread", "simple_tag"])
def test_episodes_begin_where_those_of_mpe2_do(task):
    ours = make_env(f"mpe/{task}", 4000)
    step, n = ours.reset(1), ours.spec.n_agents
    bounds = {"simple_spread": (1.0, 1.0), "simple_tag": (1.0, 0.9)}[task]  # mpe2's, of agents and of landmarks
    for points, bound in zip((ours._position, ours._marks), bounds, strict=True):
        assert 0.99 * bound < points.abs().amax(dim=(0, 2)).min() and points.abs().max() <= bound
        assert points.mean(dim=0).abs().max() < 0.05  # standard error 0.009
        assert (points.var(dim=0) - bound**2 / 3).abs().max() < 0.03  # standard error 0.005
        flat = points.flatten(1)
        assert (torch.corrcoef(flat.T) - torch.eye(flat.shape[1])).abs().max() < 0.08  # standard error 0.016
    assert not step.obs[..., :2].any()  # at rest
    theirs = make_env(f"mpe2/{task}", 200)
    theirs.reset(1)
    for world in (env.env.world for env in theirs.envs):
        assert max(np.abs(body.state.p_pos).max() for body in world.agents) <= bounds[0]
        assert max(np.abs(body.state.p_pos).max() for body in world.landmarks) <= bounds[1]
    assert n == theirs.spec.n_agents


def test_random_prey_takes_every_action_as_often():
    env = make_env("mpe/simple_tag:num_good=2,prey=random", 40)
    env.reset(0)
    counts = env._prey_moves.flatten().bincount(minlength=5)
    assert env._prey_moves.shape == (25, 40, 2)
    assert ((counts - 400.0) ** 2 / 400).sum() < 18.5  # one in a thousand, 4 degrees of freedom


@pytest.mark.parametrize("task", ["simple_spread", "simple_tag:prey=random", "simple_tag"])
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
