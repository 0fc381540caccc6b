"""Packing: nothing is lost, and the layout is torch's."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

from k24lab.core.patterns import masks_from_index
from k24lab.errors import ConfigError
from k24lab.inference import packing as pack


def random_24(n_masks, rows, columns):
    index = torch.randint(6, (n_masks, rows * -(-columns // 4)))
    weight = torch.randn(n_masks, rows, columns)
    return weight * masks_from_index(index, weight).reshape(n_masks, rows, -1)[..., :columns]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(8, 70), columns=st.integers(20, 200), n_masks=st.integers(1, 3))
def test_packing_loses_nothing(dtype, rows, columns, n_masks):
    weight = random_24(n_masks, rows, columns)
    numbers = pack.quantise(weight)[0].float() if dtype == "int8" else weight.to(pack.DTYPES[dtype]).float()
    packed = pack.pack24(numbers, dtype)
    assert torch.equal(pack.unpack24(packed).float(), numbers)
    padded = sparse_semi_structured_to_dense_cutlass(packed.values[0], packed.meta[0])
    tile = (16, 128) if dtype == "int8" else (32, 64)
    assert [n % t for n, t in zip(padded.shape, tile, strict=True)] == [0, 0]
    kept = 9 / 16 if dtype != "int8" else 10 / 16
    assert packed.nbytes == pytest.approx(kept * n_masks * padded.nbytes)


def test_a_matrix_that_is_not_24_is_refused_by_its_place():
    weight = random_24(3, 16, 32)
    weight[2, 5, 12:16] = 1.0
    with pytest.raises(ConfigError, match=r"layer 'fc2', mask 2, row 5, group 3 \(inputs 12 to 15\) keeps 4 weights"):
        pack.pack24(weight, layer="fc2")


@pytest.mark.parametrize("columns", [32, 30])
def test_a_single_weight_too_many_is_refused(columns):
    weight = torch.zeros(2, 16, columns)
    weight[:, :, ::4] = weight[:, :, 1::4] = 1.0
    assert torch.equal(pack.unpack24(pack.pack24(weight)).float(), weight)
    weight[1, 15, 10] = 1.0
    with pytest.raises(
        ConfigError, match=r"mask 1, row 15, group 2 \(inputs 8 to 11\) keeps 3 weights; 2:4 allows two"
    ):
        pack.check_24(weight, "fc2")


def test_a_dtype_without_24_kernels_is_refused():
    with pytest.raises(ConfigError, match=r"unknown dtype 'float32'; did you mean 'float16'.*1:2 in float32"):
        pack.pack24(random_24(1, 16, 32), "float32")


def test_a_layer_too_small_for_the_kernels_is_refused():
    with pytest.raises(ConfigError, match=r"'head' of shape \(5, 16\) with 80 weights would be padded to 2048"):
        pack.pack24(random_24(1, 5, 16), layer="head")


def test_quantised_rows_use_the_whole_range_and_are_near():
    weight = random_24(2, 9, 24)
    numbers, scale = pack.quantise(weight)
    assert numbers.abs().amax(dim=(0, 2)).tolist() == [127] * 9
    assert ((numbers * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()
    assert torch.equal(numbers == 0, (weight / scale[:, None]).round() == 0)


@given(n_masks=st.integers(1, 4), rows=st.integers(1, 9), groups=st.integers(1, 9))
def test_patterns_take_three_bits_each(n_masks, rows, groups):
    index = torch.randint(6, (n_masks, rows, groups), dtype=torch.uint8)
    packed = pack.pack_patterns(index)
    assert packed.shape == (n_masks, -(-rows * groups * 3 // 8))
    assert torch.equal(pack.unpack_patterns(packed, rows, groups), index)


@pytest.mark.parametrize(
    ("dtype", "value"), [("int8", 0.5), ("int8", 300.0), ("float16", 1e6), ("bfloat16", torch.inf)]
)
def test_numbers_that_a_dtype_cannot_hold_are_refused(dtype, value):
    weight = torch.zeros(1, 64, 128)
    weight[0, 3, 5] = value
    with pytest.raises(ConfigError, match=f"layer 'fc1' has numbers that {dtype} cannot hold"):
        pack.pack24(weight, dtype, "fc1")
