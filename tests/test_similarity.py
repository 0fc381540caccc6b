"""Distances of masks and policies against slow references, hand-worked values and what chance gives."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from k24lab.analysis import mask_tables as tables, similarity
from k24lab.analysis.load import Patterns
from k24lab.core.patterns import PATTERNS_24

indices = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4)), elements=st.integers(0, 5)
)


def random_index(shape, seed=0):
    return np.random.default_rng(seed).integers(6, size=shape).astype(np.uint8)


def random_probs(shape, seed=0):
    probs = np.random.default_rng(seed).exponential(size=(*shape, 6))
    return (probs / probs.sum(axis=-1, keepdims=True)).astype(np.float32)


def test_masks_by_hand():
    masks = similarity.masks(np.array([[[0, 5]], [[2, 3]]], dtype=np.uint8))
    assert masks.astype(int).tolist() == [[[1, 1, 0, 0, 0, 0, 1, 1]], [[1, 0, 0, 1, 0, 1, 1, 0]]]


def test_hamming_by_hand():
    # Groups of agents 0 and 1: equal (0), one weight shared (1/2), none shared (1).
    index = np.array([[[0, 0, 0]], [[0, 1, 5]]], dtype=np.uint8)
    assert similarity.hamming_distance(index).tolist() == [[0.0, 0.5], [0.5, 0.0]]


@given(indices)
def test_hamming_equals_the_double_loop_over_entries(index):
    masks = similarity.masks(index).reshape(len(index), -1)
    hamming = similarity.hamming_distance(index)
    for a, one in enumerate(masks):
        for b, other in enumerate(masks):
            assert hamming[a, b] == pytest.approx((one != other).mean())


def test_chance_values_of_independent_masks():
    index = random_index((2, 100, 1000))
    assert similarity.hamming_distance(index)[0, 1] == pytest.approx(similarity.CHANCE_HAMMING, abs=0.01)
    certain = np.eye(6, dtype=np.float32)[index]
    assert similarity.probability_similarity(certain)[0, 1] == pytest.approx(similarity.CHANCE_SIMILARITY, abs=0.01)
    assert similarity.flip_rate(index[:1], index[1:])[0] == pytest.approx(similarity.CHANCE_FLIP, abs=0.01)


def test_chance_hamming_is_exact_over_all_pairs_of_patterns():
    patterns = np.array(PATTERNS_24)
    assert (patterns[:, None] != patterns[None]).mean() == similarity.CHANCE_HAMMING


def test_probability_similarity_equals_the_double_loop():
    probs = random_probs((3, 4, 2))
    result = similarity.probability_similarity(probs)
    for a in range(3):
        for b in range(3):
            pa, pb = probs[a].reshape(-1, 6), probs[b].reshape(-1, 6)
            assert result[a, b] == pytest.approx((pa * pb).sum(axis=1).mean(), rel=1e-5)


def test_uniform_probabilities_have_product_one_sixth():
    probs = np.full((2, 3, 2, 6), 1 / 6, dtype=np.float32)
    assert similarity.probability_similarity(probs)[0, 1] == pytest.approx(1 / 6)
    assert similarity.pattern_entropy(probs) == pytest.approx([similarity.MAX_ENTROPY] * 2)


def test_entropy_of_certain_and_even_choices():
    probs = np.array([[[1, 0, 0, 0, 0, 0]], [[0.5, 0.5, 0, 0, 0, 0]]], dtype=np.float32)
    assert similarity.pattern_entropy(probs) == pytest.approx([0.0, np.log(2)])


@given(indices)
def test_usage_counts_every_group_once(index):
    usage = similarity.pattern_usage(index)
    assert usage.sum(axis=1) == pytest.approx(np.ones(len(index)))
    counts = [np.bincount(agent.ravel(), minlength=6) / agent.size for agent in index]
    np.testing.assert_allclose(usage, counts)


def test_flip_rate_by_hand():
    before = np.array([[[0, 1, 2, 3]], [[0, 0, 0, 0]]], dtype=np.uint8)
    after = np.array([[[0, 1, 2, 4]], [[1, 1, 1, 1]]], dtype=np.uint8)
    assert similarity.flip_rate(before, after).tolist() == [0.25, 1.0]


def test_all_layers_weighs_each_layer_by_its_entries():
    small = Patterns(np.array([[[0]], [[5]]], dtype=np.uint8), random_probs((2, 1, 1)))  # distance 1
    large = Patterns(np.zeros((2, 3, 1), dtype=np.uint8), random_probs((2, 3, 1)))  # distance 0
    both = similarity.all_layers({"small": small, "large": large})
    assert both.probs.shape == (2, 4, 6)
    assert similarity.hamming_distance(both.index)[0, 1] == 0.25


def test_mean_pair_leaves_out_the_diagonal():
    assert similarity.mean_pair(np.array([[9.0, 1.0], [3.0, 9.0]])) == 2.0
    assert np.isnan(similarity.mean_pair(np.ones((1, 1))))


def test_pattern_and_pair_tables_are_tidy():
    index = np.array([[[0, 5]], [[1, 1]]], dtype=np.uint8)
    cells = tables.pattern_table(index, rows=8, groups=1)
    assert cells.values.tolist() == [[0, 0, 0, "1100"], [1, 0, 0, "1010"]]
    pairs = tables.pair_table({"d": np.array([[0.0, 1.0], [2.0, 3.0]])})
    assert pairs.values.tolist() == [[0, 0, 0], [0, 1, 1], [1, 0, 2], [1, 1, 3]]


def test_greedy_difference_respects_available_actions():
    q_values = np.array([[[9.0, -1.0, -2.0], [1.0, 0.0, 0.0]], [[8.0, -2.0, -1.0], [2.0, 0.0, 0.0]]])
    avail = np.array([[False, True, True], [True, True, True]])
    assert similarity.greedy_actions(q_values, avail).tolist() == [[1, 0], [2, 0]]
    assert similarity.greedy_difference(q_values, avail).tolist() == [[0.0, 0.5], [0.5, 0.0]]
    assert similarity.chance_greedy_difference(avail) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_action_shares_count_greedy_available_actions():
    q_values = np.array([[[9.0, -1.0, -2.0], [1.0, 0.0, 0.0]], [[8.0, -2.0, -1.0], [0.0, 0.0, 2.0]]])
    avail = np.array([[False, True, True], [True, True, True]])
    assert similarity.action_shares(q_values, avail).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
