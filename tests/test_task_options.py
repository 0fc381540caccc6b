"""Options of tasks: their types, and how their text is read."""

import pytest

from k24lab.envs.registry import canonical_task, make_env
from k24lab.envs.tasks import canonical_text, format_task, parse_task
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


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ("n=[1,2],m=3", {"n": [1, 2], "m": 3}),
        ("n = {'a': (1, 2)} , m='a,b=c',", {"n": {"a": (1, 2)}, "m": "a,b=c"}),
        ("n=b'1,2',m=[[1,2],[3]]", {"n": b"1,2", "m": [[1, 2], [3]]}),
        ("n=[1,m=2", {"n": "[1", "m": 2}),  # words, as ever
        ("n=it's,m=it's", {"n": "it's", "m": "it's"}),
    ],
)
def test_commas_inside_brackets_and_quotes_end_no_option(options, values):
    assert parse_task(f"pettingzoo/a.b:{options}") == ("pettingzoo/a.b", values)
    assert parse_task(canonical_text(f"pettingzoo/a.b:{options}")) == ("pettingzoo/a.b", values)


def test_a_word_that_looks_like_the_beginning_of_a_text_stays_a_word():
    task = format_task("pettingzoo/a.b", {"m": "b'", "n": "'x", "o": "y'", "p": "a,b"})
    assert parse_task(task)[1] == {"m": "b'", "n": "'x", "o": "y'", "p": "a,b"}


VALUES = ["a", "'3'", "' a'", "[1]", "None", "1e999", "-0.5", "3", "True", "b'x'", "", "a=b"]
VALUES += ["[1,2]", "(1,)", "{'a':(1,'b,c')}", "'a,b'", '"it\'s,"', "'a", "it's"]


@pytest.mark.parametrize("value", VALUES)
def test_the_one_spelling_of_a_task_means_the_same(value):
    task = f"pettingzoo/my.module:factory:x={value},b=1"
    assert parse_task(canonical_text(task)) == parse_task(task)
    assert canonical_text(canonical_text(task)) == canonical_text(task)
