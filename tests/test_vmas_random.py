"""Random numbers of VMAS environments: an instance has its own, and leaves everybody else's alone."""

import random

import numpy as np
import pytest
import torch
from small_vmas import counter, global_state, needs_vmas, play, same, still

from k24lab.envs.registry import make_env


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
