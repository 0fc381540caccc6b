"""The PettingZoo adapter against small environments whose every number is known."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Sequence
from small_pettingzoo import ToyEnv, envs_in, lift, play, same, still

from k24lab.envs.base import Step
from k24lab.errors import ConfigError, RunError

# Observations, actions, reward


def test_unequal_observations_and_actions_are_padded():
    env = lift(ToyEnv, n_envs=2)
    assert (env.spec.obs_dims, env.spec.n_actions, env.spec.state_dim) == ((2, 3), (3, 5), 5)
    env.reset(0)
    step = env.step(torch.tensor([[2, 4], [0, 3]]))
    start = step.obs[:, 0, 1]
    assert step.obs[:, 0].tolist() == [[1, start[0], 0], [1, start[1], 0]]
    assert step.obs[:, 1].tolist() == [[1, start[0], 4], [1, start[1], 3]]
    assert step.avail_actions[0].tolist() == [[True, True, True, False, False], [True] * 5]
    assert step.state.tolist() == [[1, start[0], 1, start[0], 4], [1, start[1], 1, start[1], 3]]  # without padding
    assert step.alive.all() and step.reward.tolist() == [11, 11]  # 1 + 10


@pytest.mark.parametrize("action", [[3, 0], [0, 5], [-1, 0], [0, -1]])
def test_an_action_that_is_not_available_is_an_error(action: list[int]):
    env = lift(ToyEnv, n_envs=2)
    env.reset(0)
    agent = "a" if action[0] else "b"
    with pytest.raises(
        ValueError, match=rf"environment 1, agent '{agent}': action {max(action, key=abs)} is not avail"
    ):
        env.step(torch.tensor([[0, 0], action]))
    assert envs_in(env)[0].played == []  # nothing has moved


def test_step_before_reset_is_an_error():
    env = lift(ToyEnv)
    with pytest.raises(ValueError, match="before the first reset"):
        env.step(still(env))


class Masked(ToyEnv):
    """Only the action t % n is legal; the mask is part of the observation (a) or of the info (b)."""

    def mask(self, n: int) -> np.ndarray:
        return (np.arange(n) == self.t % n).astype(np.int8)

    def observe(self, agents):
        seen = super().observe(agents)
        return {a: {"observation": o, "action_mask": self.mask(3)} if a == "a" else o for a, o in seen.items()}

    def reset(self, seed: int):
        return super().reset(seed)[0], {"a": {}, "b": {"action_mask": self.mask(5)}}

    def step(self, actions):
        return *super().step(actions)[:4], {"a": {}, "b": {"action_mask": self.mask(5)}}

    def observation_space(self, agent: str):
        box = super().observation_space(agent)
        return Dict({"observation": box, "action_mask": MultiBinary(3)}) if agent == "a" else box


def test_action_masks_are_honoured():
    env = lift(Masked)
    step = env.reset(0)
    for t in range(7):
        expected = [[i == t % 3 for i in range(3)] + [False] * 2, [i == t % 5 for i in range(5)]]
        assert step.avail_actions[0].tolist() == expected
        assert step.obs[0, :, 0].tolist() == [t, t]
        with pytest.raises(ValueError, match=rf"'b'.*allowed: \[{t % 5}\]"):
            env.step(torch.tensor([[t % 3, (t + 1) % 5]]))
        step = env.step(torch.tensor([[t % 3, t % 5]]))


def test_a_mask_without_any_action_is_an_error():
    class Stuck(Masked):
        def mask(self, n: int) -> np.ndarray:
            return np.zeros(n)

    with pytest.raises(RunError, match=r"environment 0: action_mask at step 0 leaves agent 'a' no action"):
        lift(Stuck).reset(0)


class Spaces(ToyEnv):
    """One agent whose spaces are given."""

    possible_agents = ("a",)
    observed = Box(-100, 100, (2,))
    acted = Discrete(3)
    value = np.zeros(2)

    def observe(self, agents):
        return dict.fromkeys(agents, self.value)

    def observation_space(self, agent: str):
        return self.observed

    def action_space(self, agent: str):
        return self.acted


@pytest.mark.parametrize(
    "space, value, flat",
    [
        (Box(0, 9, (2, 2)), np.array([[1, 2], [3, 4]]), [1, 2, 3, 4]),
        (Box(0, 9, ()), np.array(7), [7]),
        (Box(0, 255, (3,), np.uint8), np.array([1, 2, 255], np.uint8), [1, 2, 255]),
        (Discrete(4), 2, [0, 0, 1, 0]),
        (Discrete(3, start=5), 6, [0, 1, 0]),
    ],
)
def test_observations_are_flattened(space, value, flat):
    env = lift(type("Flat", (Spaces,), {"observed": space, "value": value}))
    assert env.spec.obs_dims == (len(flat),)
    assert env.reset(0).obs.tolist() == [[flat]]


def test_observations_that_cannot_be_flattened_are_refused():
    with pytest.raises(ConfigError, match=r"agent 'a'.*Sequence.*allowed: Box, Discrete"):
        lift(type("Told", (Spaces,), {"observed": Sequence(Discrete(5))}))


@pytest.mark.parametrize("space", [Box(0, 1, (5,)), MultiDiscrete([2, 2])])
def test_actions_other_than_discrete_are_refused(space):
    with pytest.raises(ConfigError, match=rf"agent 'a'.*{type(space).__name__}.*allowed: Discrete") as error:
        lift(type("Acted", (Spaces,), {"acted": space}))
    assert ("continuous_actions=False" in str(error.value)) == isinstance(space, Box)


def test_actions_count_from_the_start_of_their_space():
    env = lift(type("Shifted", (Spaces,), {"acted": Discrete(3, start=10)}))
    env.reset(0)
    env.step(torch.tensor([[2]]))
    assert envs_in(env)[0].played == [{"a": 12}]


# Ends


def test_last_reward_and_observation_are_kept():
    for how in ("terminated", "truncated"):
        steps = play(lift(lambda how=how: ToyEnv({"a": (3, how), "b": (3, how)})), seed=0)
        assert [step.reward.item() for step in steps] == [0, 11, 22, 33]
        assert steps[-1].obs[0, :, 0].tolist() == [3, 3]
        assert steps[-1].alive.all() and steps[-1].avail_actions.sum() == 8  # they saw it, so it can be bootstrapped
        assert steps[-1].state[0, 0] == 3


@pytest.mark.parametrize(
    "exits, limit, end, terminated",
    [
        ({"a": (3, "terminated"), "b": (3, "terminated")}, None, 3, True),
        ({"a": (3, "truncated"), "b": (3, "truncated")}, None, 3, False),
        ({"a": (3, "terminated+truncated"), "b": (3, "terminated+truncated")}, None, 3, True),
        ({"a": (1, "terminated"), "b": (3, "truncated")}, None, 3, False),
        ({"a": (1, "truncated"), "b": (3, "terminated")}, None, 3, True),
        ({"a": (3, "terminated"), "b": (3, "truncated")}, None, 3, False),
        ({}, 4, 4, False),
        ({"a": (2, "terminated")}, 4, 4, False),
        ({"a": (3, "terminated"), "b": (3, "terminated")}, 3, 3, True),
        ({"a": (5, "terminated"), "b": (5, "terminated")}, 4, 4, False),
    ],
)
def test_terminated_and_truncated_are_apart(exits, limit, end, terminated):
    steps = play(lift(lambda: ToyEnv(exits), episode_limit=limit), seed=0)
    assert [(step.terminated.item(), step.truncated.item()) for step in steps] == [
        *[(False, False)] * end,
        (terminated, not terminated),
    ]


def test_agents_that_leave_early_have_nothing_left_to_see_or_choose():
    env = lift(lambda: ToyEnv({"b": (2, "terminated"), "a": (4, "terminated")}))
    steps = play(env, seed=0)
    assert [step.alive[0].tolist() for step in steps] == [[True, True]] * 2 + [[True, False]] * 3
    assert [step.reward.item() for step in steps] == [0, 11, 22, 3, 4]  # the last reward of b counts
    for step in steps[2:]:
        assert not step.obs[0, 1].any() and step.obs[0, 0].any()
        assert step.avail_actions[0, 1].tolist() == [True, False, False, False, False]
    assert [sorted(actions) for actions in envs_in(env)[0].played] == [["a", "b"]] * 2 + [["a"]] * 2
    again = env.reset(0)
    assert again.alive.all() and same([again], steps[:1])


def test_an_agent_that_left_may_only_wait():
    env = lift(lambda: ToyEnv({"b": (1, "terminated")}))
    env.reset(0)
    env.step(still(env))
    with pytest.raises(ValueError, match=r"'b': action 1 is not available \(allowed: \[0\]\)"):
        env.step(torch.tensor([[0, 1]]))


def test_ended_environments_stay_frozen_and_ignore_actions():
    envs = iter([ToyEnv({"a": (2, "terminated"), "b": (2, "terminated")}), ToyEnv()])
    env = lift(lambda: next(envs), n_envs=2)
    env.reset(0)
    env.step(still(env))
    last = env.step(still(env))
    assert last.reward.tolist() == [22, 22] and last.terminated.tolist() == [True, False]
    for t in (3, 4):
        step = env.step(torch.tensor([[99, -1], [0, 0]]))
        for name in ("obs", "state", "avail_actions", "alive", "terminated", "truncated"):
            assert torch.equal(getattr(step, name)[0], getattr(last, name)[0])
        assert step.reward.tolist() == [0, 11 * t] and step.obs[1, 0, 0] == t
    assert len(envs_in(env)[0].played) == 2


def test_kept_steps_do_not_change():
    env = lift(lambda: ToyEnv({"b": (2, "terminated"), "a": (3, "terminated")}), n_envs=2)
    kept = play(env, seed=0)
    copies = [Step(**{name: value.clone() for name, value in vars(s).items() if value is not None}) for s in kept]
    play(env, seed=1, action_seed=1)
    assert same(kept, copies)


# State, limit, what is refused


def test_the_environment_s_own_state_is_used_also_the_last_one():
    class Stated(ToyEnv):
        def state(self):
            return np.array([[self.t, 7]])

    env = lift(lambda: Stated({"a": (2, "terminated"), "b": (2, "terminated")}), n_envs=2)
    assert env.spec.state_dim == 2
    assert [step.state.tolist() for step in play(env, seed=0)] == [[[t, 7]] * 2 for t in range(3)]


def test_a_state_that_is_not_implemented_is_replaced_and_one_that_is_wrong_refused():
    def unwritten(self):
        raise NotImplementedError

    assert lift(type("Unstated", (ToyEnv,), {"state": unwritten})).spec.state_dim == 2 + 3
    for wrong in (None, {"a": 1}, "state", np.zeros(0)):
        with pytest.raises(ConfigError, match=r"state\(\) must return an array"):
            lift(type("Misstated", (ToyEnv,), {"state": lambda self, wrong=wrong: wrong}))


def test_the_episode_limit_is_the_environment_s_or_the_given_one():
    class Unlimited(ToyEnv):
        max_cycles = None

    assert lift(ToyEnv).spec.episode_limit == 100
    assert lift(ToyEnv, episode_limit=7).spec.episode_limit == 7
    assert lift(Unlimited, episode_limit=7).spec.episode_limit == 7
    with pytest.raises(ConfigError, match="set the option episode_limit"):
        lift(Unlimited)
    for wrong in (0, 2.5, "x"):
        with pytest.raises(ConfigError, match=r"whole number|at least 1"):
            lift(type("Wrong", (ToyEnv,), {"max_cycles": wrong}))


def test_what_is_no_parallel_environment_is_refused():
    with pytest.raises(ConfigError, match="lacks possible_agents, reset"):
        lift(object)
    with pytest.raises(ConfigError, match="at least one agent"):
        lift(type("Empty", (ToyEnv,), {"possible_agents": ()}))
    with pytest.raises(ConfigError, match="n_envs = 0"):
        lift(ToyEnv, n_envs=0)


def test_close_reaches_every_environment():
    env = lift(ToyEnv, n_envs=3)
    env.close()
    assert [toy.closed for toy in envs_in(env)] == [True] * 3
