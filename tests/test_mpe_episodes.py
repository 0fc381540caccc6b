"""The particle environments in batches by themselves: what is drawn, how episodes end, what is refused."""

import subprocess
import sys

import pytest
import torch
from mpe_pairs import FIELDS, random_actions

from k24lab.envs.base import Step
from k24lab.envs.mpe_tasks import MPE_TASKS
from k24lab.envs.registry import make_env
from k24lab.errors import ConfigError


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
