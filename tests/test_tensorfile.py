"""Files of tensors: what is read is what was written, or an error."""

import json
import os

import pytest
import torch
from hypothesis import given, strategies as st

from k24lab.errors import RunError
from k24lab.lab import tensorfile

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False)
TENSORS = st.builds(
    lambda shape, dtype: (torch.rand(shape) * 3).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
)
PLAIN = st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | TENSORS
KEYS = st.text(max_size=5) | st.integers(0, 9) | st.just("$tensor")
NESTS = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(NESTS)
def test_what_is_read_is_what_was_written(tmp_path_factory, nest):
    tensors = {}
    tree = json.dumps(tensorfile.flatten({"state": nest}, tensors))
    path = tmp_path_factory.mktemp("file") / "x"
    with path.open("wb") as file:
        tensorfile.write(file, {"format": "x-1", "tree": tree}, tensors)
    about, tensors = tensorfile.read(path, "x-1")
    assert same(tensorfile.restore(json.loads(about["tree"]), tensors), {"state": nest})


@pytest.fixture
def whole(tmp_path):
    weight = torch.randn(3, 7)
    tensors = {"a/weight": weight, "a/row": weight[1], "b": torch.arange(5), "c": weight.T, "n": torch.tensor(2.5)}
    path = tmp_path / "whole"
    with path.open("wb") as file:
        tensorfile.write(file, {"format": "x-1", "note": "kept"}, tensors)
    return path, tensors


def test_views_and_transposes_of_one_memory_are_kept_as_they_look(whole):
    path, tensors = whole
    about, found = tensorfile.read(path, "x-1")
    assert about == {"format": "x-1", "note": "kept"} and same(found, dict(sorted(tensors.items())))


def test_a_file_that_is_cut_anywhere_is_refused(whole):
    path, _ = whole
    size = path.stat().st_size
    for length in range(size - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(RunError, match=r"cannot be read, it is truncated"):
            tensorfile.read(path, "x-1")


def test_a_file_with_any_bit_flipped_is_refused_or_reads_the_same(whole):
    path, tensors = whole
    content, expected, accepted = path.read_bytes(), dict(sorted(tensors.items())), 0
    for at in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            try:
                about, found = tensorfile.read(path, "x-1")
            except RunError:
                continue
            accepted += 1
            assert about == {"format": "x-1", "note": "kept"} and same(dict(sorted(found.items())), expected)
    assert accepted < len(content) // 50  # such as white space in the header


def test_another_format_or_none_is_refused(whole, tmp_path):
    path, _ = whole
    with pytest.raises(RunError, match="has format 'x-1', expected 'x-2'"):
        tensorfile.read(path, "x-2")
    with pytest.raises(RunError, match="does not exist"):
        tensorfile.read(tmp_path / "absent", "x-1")


def test_what_no_file_of_tensors_holds_is_named():
    with pytest.raises(TypeError, match="state/1 is of type set"):
        tensorfile.flatten({"state": [1, {2}]}, {})
