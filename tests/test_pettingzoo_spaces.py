"""Observations are flattened as Gymnasium does it, and refused where it would wrap them or take something else."""

from collections import UserDict
from types import MappingProxyType

import numpy as np
import pytest
from gymnasium import spaces

from k24lab.envs.pettingzoo import PettingZooEnv
from k24lab.envs.pettingzoo_spaces import Unfit, action_mask, encoder

SPACES = [
    spaces.Box(-1, 1, (2, 3), np.float32),
    spaces.Box(0, 255, (2, 2, 3), np.uint8),
    spaces.Box(-1, 1, (), np.float64),
    spaces.MultiBinary((2, 2)),
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete([3, 4]),
    spaces.MultiDiscrete([[3, 4], [2, 2]], start=[[1, -1], [0, 5]]),
    spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)]),
    spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Dict({"x": spaces.MultiBinary(2)})}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_flat_observations_are_those_of_gymnasium(space):
    size, encode = encoder("a", space)
    assert size == spaces.flatdim(space)
    for _ in range(20):
        sample = space.sample()
        assert np.array_equal(encode(sample), spaces.flatten(space, sample))


def test_truth_values_and_whole_floats_are_bits():
    assert encoder("a", spaces.Discrete(2))[1](True).tolist() == [0, 1]
    assert encoder("a", spaces.MultiBinary(2))[1](np.array([1.0, 0.0])).tolist() == [1, 0]
    assert encoder("a", spaces.MultiBinary(2))[1]([True, False]).tolist() == [1, 0]


def test_an_empty_dictionary_is_no_number():
    size, encode = encoder("a", spaces.Dict({}))
    assert size == 0 and encode({}).shape == (0,)


@pytest.mark.parametrize(
    "space, value, said",
    [
        (spaces.Discrete(5), 5, r"its observation is int 5, which is not in Discrete\(5\)$"),
        (spaces.Discrete(5), -1, r"int -1, which is not in Discrete\(5\)$"),
        (spaces.Discrete(5, start=3), 2, r"int 2, which is not in Discrete\(5, start=3\)$"),
        (spaces.Discrete(5), 2.0, r"float 2\.0, which is not in Discrete\(5\)$"),
        (spaces.Discrete(5), np.array([2]), r"array\(\[2\]\), which is not in Discrete\(5\)$"),
        (spaces.MultiDiscrete([3, 4]), [-1, 0], r"list \[-1, 0\], which is not in MultiDiscrete\(\[3 4\]\)$"),
        (spaces.MultiDiscrete([3, 4]), [2], "which is not in MultiDiscrete"),
        (spaces.MultiBinary(4), [1, -2, 1, 0], r"list \[1, -2, 1, 0\], which is not in MultiBinary\(4\)$"),
        (spaces.MultiBinary(2), np.array([7, 0]), "which is not in MultiBinary"),
        (spaces.MultiBinary(2), [0.5, 1], "which is not in MultiBinary"),
        (spaces.MultiBinary(2), [1], "which is not in MultiBinary"),
        (spaces.Tuple([spaces.Discrete(3)]), (), r"without a part of Tuple"),
        (spaces.Dict({"x": spaces.Discrete(3)}), {"x": 3}, "its observation is int 3"),
        (spaces.Dict({"x": spaces.Discrete(3)}), 1, "int 1, without a part of Dict"),
    ],
)
def test_what_is_outside_of_its_space_is_told(space, value, said):
    with pytest.raises(Unfit, match=said):
        encoder("a", space)[1](value)


def test_a_declared_mask_must_be_there_and_is_not_observed():
    space = spaces.Dict({"observation": spaces.Discrete(2), "action_mask": spaces.MultiBinary(3)})
    size, encode = encoder("a", space)
    assert size == 2 and encode({"observation": 1, "action_mask": [1, 0, 0]}).tolist() == [0, 1]
    with pytest.raises(Unfit, match="without a part of Dict"):
        encode({"observation": 1})


def test_masks_are_zeros_and_ones_of_any_type_and_the_observation_s_comes_first():
    for dtype in (bool, np.int8, np.float32):
        mask = action_mask({"action_mask": np.array([1, 0], dtype)}, {"action_mask": np.array([0, 1])}, 2)
        assert mask.dtype == bool and mask.tolist() == [True, False]
    for kind in (UserDict, MappingProxyType):
        assert action_mask(kind({"action_mask": [0, 1]}), {}, 2).tolist() == [False, True]
        assert action_mask(np.zeros(2), kind({"action_mask": [0, 1]}), 2).tolist() == [False, True]
    assert action_mask(np.zeros(2), {"action_mask": [0, 0]}, 2).tolist() == [False, False]
    assert action_mask(np.zeros(2), {}, 2) is None and action_mask(np.zeros(2), None, 2) is None
    for wrong in ([2, 0], [0.5, 1], [np.nan, 1], ["a", "b"]):
        with pytest.raises(Unfit, match="each 0 or 1"):
            action_mask(None, {"action_mask": wrong}, 2)
    with pytest.raises(Unfit, match="allowed are 2 numbers"):
        action_mask(None, {"action_mask": None}, 2)


@pytest.mark.parametrize("flag", [True, np.True_, 1, np.int8(1), np.array(True)], ids=repr)
def test_flags_and_rewards_may_be_numbers_of_numpy(flag):
    from odd_environments import Base

    class Given(Base):
        def over(self, agent):
            return (flag if agent == "a0" else flag * 0), False

        def pay(self, agent, action):
            return {"a0": np.float32(1), "a1": np.array(2), "a2": np.int64(3)}[agent]

    env = PettingZooEnv(Given())
    env.reset(0)
    row = env.step(np.zeros(3, np.int64))
    assert row.alive.tolist() == [False, True, True] and row.reward == 6
