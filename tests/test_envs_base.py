"""What every environment's adapter relies on: sizes, the check of actions, and runs that end before they learn."""

import itertools
import re

import pytest
import torch

from k24lab.envs.base import EnvSpec, check_actions
from k24lab.errors import ConfigError
from k24lab.lab.checks import check_t_max
from k24lab.lab.config import build_config


def make_spec(**changes) -> EnvSpec:
    sizes = {"n_envs": 2, "n_agents": 3, "obs_dims": (4, 7, 5), "n_actions": (2, 5, 3), "state_dim": 1}
    return EnvSpec(**sizes | {"episode_limit": 9} | changes)


def test_sizes_are_padded_to_those_of_the_largest_agent():
    assert (make_spec().obs_dim, make_spec().action_dim) == (7, 5)


def first_update_begins(batch_size: int, n_envs: int, shortest: int) -> int:
    """Env steps before the rollout that fills a batch, when every episode is as short as can be."""
    episodes = steps = 0
    while episodes + n_envs < batch_size:
        episodes, steps = episodes + n_envs, steps + n_envs * shortest
    return steps


@pytest.mark.parametrize("shortest", [1, 3])
def test_a_run_is_refused_exactly_if_no_rollout_that_fills_a_batch_begins_before_its_end(shortest):
    spec = make_spec(**({} if shortest == 1 else {"shortest_episode": shortest}))

    def refused(t_max: int, batch_size: int, n_envs: int) -> str:
        settings = {"t_max": t_max, "batch_size": batch_size, "n_envs": n_envs, "buffer_size": 100}
        try:
            check_t_max(build_config(settings), spec)
        except ConfigError as error:
            return str(error)
        return ""

    for t_max, batch_size, n_envs in itertools.product(range(1, 30), range(1, 14), (1, 2, 5)):
        said = refused(t_max, batch_size, n_envs)
        assert bool(said) == (first_update_begins(batch_size, n_envs, shortest) >= t_max)
        if said:  # what the message allows is allowed, and one more or less is not
            longer, smaller = map(
                int, re.search(r"t_max of at least (\d+), or batch_size of at most (\d+)", said).groups()
            )
            assert not refused(longer, batch_size, n_envs) and refused(longer - 1, batch_size, n_envs)
            assert not refused(t_max, smaller, n_envs) and refused(t_max, smaller + 1, n_envs)


AVAILABLE = torch.tensor([[[1, 0, 1], [0, 1, 0]], [[1, 1, 1], [1, 0, 0]]], dtype=torch.bool)
RUNNING = torch.zeros(2, dtype=torch.bool)


def test_available_actions_pass_and_those_of_ended_environments_are_not_read():
    for first, second in itertools.product((0, 2), (0, 1, 2)):
        check_actions(torch.tensor([[first, 1], [second, 0]]), AVAILABLE, RUNNING, ["a", "b"])
    check_actions(torch.tensor([[0, 1], [9, -1]]), AVAILABLE, torch.tensor([False, True]), ["a", "b"])


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([[1, 1], [0, 0]], r"environment 0, agent 'a': action 1 is not available \(allowed: \[0, 2\]\)"),
        ([[0, 0], [0, 0]], r"environment 0, agent 'b': action 0 is not available \(allowed: \[1\]\)"),
        ([[0, 1], [0, 2]], r"environment 1, agent 'b': action 2 is not available \(allowed: \[0\]\)"),
        ([[0, 1], [3, 0]], r"environment 1, agent 'a': action 3 is not available \(allowed: \[0, 1, 2\]\)"),
        ([[0, 1], [-1, 0]], r"environment 1, agent 'a': action -1 is not available \(allowed: \[0, 1, 2\]\)"),
    ],
)
def test_an_action_that_is_not_available_is_named_with_who_chose_it(actions, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_actions(torch.tensor(actions), AVAILABLE, RUNNING, ["a", "b"])
