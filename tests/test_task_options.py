"""Options of tasks: their types, and how their text is read."""

import pytest

from k24lab.envs import canonical_task, make_env
from k24lab.errors import ConfigError


@pytest.mark.parametrize(
    ("task", "same"),
    [
        ("vmas/navigation:collisions=false", "vmas/navigation"),
        ("vmas/navigation:collisions=TRUE", "vmas/navigation:collisions=True"),
        ("vmas/navigation:shared_rew=false", "vmas/navigation:shared_rew=False"),
        ("mpe2/simple_spread:curriculum=False", "mpe2/simple_spread:curriculum=false"),
        ("vmas/navigation:lidar_range=1", "vmas/navigation:lidar_range=1.0"),
        ("mpe2/simple_tag:prey=random", "mpe2/simple_tag:prey='random'"),
    ],
)
def test_options_of_tasks_have_the_type_of_their_annotation_or_default(task, same):
    assert canonical_task(task) == canonical_task(same)


@pytest.mark.parametrize(
    "option",
    ["vmas/navigation:collisions=fasle", "vmas/navigation:shared_rew=0", "mpe2/simple_spread:continuous_actions=0"],
)
def test_a_switch_of_a_task_takes_truth_values_alone(option):
    with pytest.raises(ConfigError, match=r"option \w+ = \S+ must be true or false$"):
        make_env(option, 1)


@pytest.mark.parametrize("option", ["mpe2/simple_spread:N=True", "vmas/navigation:n_agents=True", "rolenav:n_types=x"])
def test_a_number_of_a_task_is_no_truth_value_and_no_word(option):
    with pytest.raises(ConfigError, match=r"option \w+ = \S+ is a (bool|str), not"):
        canonical_task(option)
