"""The scripted controllers and random actions that returns of the study are compared with."""

import pandas as pd
import pytest
import torch

from study.references import EPISODES, INSTALLED, TABLE, reference_table, returns
from study.scripted import CONTROLLERS, MPE_MOVES, RoleNavPlan, _walks, assign, towards


def test_the_committed_table_is_what_the_command_writes():
    table = pd.read_csv(TABLE)
    assert set(table["task"]) == set(INSTALLED)
    for task in ("rolenav3", "vmas_dispersion"):
        expected = table[table["task"] == task].reset_index(drop=True)
        pd.testing.assert_frame_equal(reference_table([task], EPISODES), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("task", "at_least"), [("rolenav3", 2.9), ("spread", -32), ("tag", 120), ("vmas_navigation", 2.9)]
)
def test_a_controller_is_far_ahead_of_random_actions(task, at_least):
    assert returns(task, CONTROLLERS[task], n_episodes=60).mean() > at_least


def test_a_plan_reaches_a_goal_on_the_grid_and_uses_a_wall_where_that_is_nearer():
    direct = min(_walks(0.1, 0.1 + 3 * 0.12), key=lambda walk: walk[0])
    assert direct[0] == pytest.approx(0) and direct[1] == [1, 1, 1]
    left, steps = min(_walks(0.95, 1 - 2 * 0.12), key=lambda walk: walk[0])
    assert left == pytest.approx(0) and steps == [1, -1, -1]


def test_a_plan_that_does_not_fit_into_the_episode_is_not_taken():
    short = returns("rolenav3", RoleNavPlan, n_episodes=50)
    assert short.isfinite().all()


def test_agents_get_different_landmarks_at_the_smallest_sum_of_distances():
    offsets = torch.tensor([[[[0.0, 0.0], [1.0, 0.0]], [[0.1, 0.0], [9.0, 0.0]]]])
    assert assign(offsets).tolist() == [[1, 0]]


def test_an_agent_brakes_if_its_speed_carries_it_too_far():
    target, fast = torch.tensor([[[0.1, 0.0]]]), torch.tensor([[[1.0, 0.0]]])
    assert towards(target, fast, MPE_MOVES, 0.5).item() == 1  # left
    assert towards(3 * target, 0 * fast, MPE_MOVES, 0.5).item() == 2  # right
