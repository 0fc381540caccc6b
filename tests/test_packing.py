"""What a file stores of a team: patterns in three bits, weights in fewer bits."""

import pytest
import torch
from hypothesis import given, strategies as st
from test_kernels import random_24

from k24lab.errors import ConfigError
from k24lab.inference import packing
from k24lab.inference.freeze import FrozenLayer


def test_a_mask_that_is_not_24_is_named():
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(2, 3, 2)
    mask[1, 2, 5:7] = 1.0
    mask[1, 2, 4] = 0.0
    assert packing.patterns_of(mask, "fc2")[1, 2].tolist() == [0, 3]
    mask[1, 2, 4] = 1.0
    with pytest.raises(ConfigError, match=r"layer 'fc2', mask 1, row 2, group 1 = \[1.0, 1.0, 1.0, 0.0\] is not 2:4"):
        packing.patterns_of(mask, "fc2")


def test_a_weight_too_many_in_a_cut_group_is_named():
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(1, 1, 2)[..., :7]
    mask[0, 0, 6] = 1.0
    with pytest.raises(ConfigError, match=r"layer 'fc1', mask 0, row 0, group 1 = \[1.0, 1.0, 1.0\] is not 2:4"):
        packing.patterns_of(mask, "fc1")


def test_a_cut_group_takes_a_pattern_that_agrees():
    for kept in ([1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]):
        index = packing.patterns_of(torch.tensor([[[1.0, 1.0, 0.0, 0.0, *kept]]]), "fc1")
        layer = FrozenLayer(torch.ones(1, 6), torch.zeros(1), index)
        assert layer.masked()[0, 0, 4:].tolist() == kept


@given(n_masks=st.integers(1, 4), rows=st.integers(1, 9), groups=st.integers(1, 9))
def test_patterns_take_three_bits_each(n_masks, rows, groups):
    index = torch.randint(6, (n_masks, rows, groups), dtype=torch.uint8)
    packed = packing.pack_patterns(index)
    assert packed.shape == (n_masks, -(-rows * groups * 3 // 8))
    assert torch.equal(packing.unpack_patterns(packed, rows, groups), index)


def test_quantised_rows_use_the_whole_range_and_are_near():
    weight = random_24(1, 9, 24)[0]
    numbers, scale = packing.quantise(weight)
    assert numbers.dtype == torch.int8 and numbers.abs().amax(dim=1).tolist() == [127] * 9
    assert ((numbers * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()
    assert torch.equal(numbers == 0, (weight / scale[:, None]).round() == 0)


def test_a_row_of_zeros_stays_zero_when_quantised():
    numbers, scale = packing.quantise(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert numbers.tolist() == [[0, 0], [64, -127]] and (scale > 0).all()


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e6), ("bfloat16", torch.inf)])
def test_numbers_that_a_dtype_cannot_hold_are_refused(dtype, value):
    weight = torch.zeros(64, 128)
    weight[3, 5] = value
    with pytest.raises(ConfigError, match=f"layer 'fc1' has numbers that {dtype} cannot hold: the largest is"):
        packing.to_dtype(weight, getattr(torch, dtype), "fc1")
