import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st

from k24lab.core.patterns import (
    PATTERN_NAMES,
    PATTERNS_24,
    best_index,
    expected_masks,
    group_scores,
    masks_from_index,
    n_groups,
    pattern_logits,
    sample_index,
    ungroup,
)

sizes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 13))  # M, out, in


def test_patterns_are_all_choices_of_two_in_lexicographic_order():
    expected = [tuple(int(i in kept) for i in range(4)) for kept in itertools.combinations(range(4), 2)]
    assert list(PATTERNS_24) == expected
    assert PATTERN_NAMES == ("1100", "1010", "1001", "0110", "0101", "0011")


@settings(deadline=None, max_examples=40)
@given(sizes)
def test_grouping_lists_rows_in_order_pads_with_zeros_and_can_be_undone(size):
    m, out, in_features = size
    scores = torch.arange(1.0, m * out * in_features + 1).reshape(size)
    grouped = group_scores(scores)
    assert grouped.shape == (m, out * n_groups(in_features), 4)
    for i, o, j in itertools.product(range(m), range(out), range(4 * n_groups(in_features))):
        expected = scores[i, o, j] if j < in_features else 0.0
        assert grouped[i, o * n_groups(in_features) + j // 4, j % 4] == expected
    assert torch.equal(ungroup(grouped, out, in_features), scores)


def test_pattern_logits_are_the_sums_of_the_two_kept_scores():
    grouped = torch.randn(2, 3, 4, dtype=torch.float64)
    logits = pattern_logits(grouped)
    for p, m, g in itertools.product(range(6), range(2), range(3)):
        kept = sum(grouped[m, g, j] for j in range(4) if PATTERNS_24[p][j])
        torch.testing.assert_close(logits[p, m, g], kept)


@pytest.mark.parametrize("temperature", [5.0, 1.0, 0.1])
def test_sampled_patterns_follow_softmax_of_logits_over_temperature(temperature):
    z = torch.tensor([0.3, -0.2, 0.25, 0.1, 0.0, 0.28], dtype=torch.float64)
    law = torch.softmax(z / temperature, dim=0)
    draws = 60_000
    probs = law.float().reshape(6, 1, 1).expand(6, 3, draws // 3)
    index = sample_index(probs, torch.rand(3, draws // 3, generator=torch.Generator().manual_seed(3)))
    counts = torch.bincount(index.flatten(), minlength=6)
    chi_square = ((counts - draws * law) ** 2 / (draws * law)).sum()
    assert chi_square < 20.5  # one in a thousand at 5 degrees of freedom


def test_patterns_of_probability_zero_are_never_sampled():
    probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0, 0.0]).reshape(6, 1, 1).expand(6, 2, 20_000)
    uniform = torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0))
    assert sample_index(probs, uniform).unique().tolist() == [1, 3]


@pytest.mark.parametrize(("u", "expected"), [(0.0, 1), (1 - 2**-24, 3)])
def test_random_numbers_at_the_edge_pick_patterns_of_positive_probability(u, expected):
    probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0, 0.0]).reshape(6, 1, 1)
    assert sample_index(probs, torch.full((1, 1), u)).item() == expected


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(-1, 2), min_size=6, max_size=6), min_size=1, max_size=8))
def test_best_pattern_is_the_argmax_and_a_tie_goes_to_the_first(groups):
    logits = torch.tensor(groups, dtype=torch.float32).T.unsqueeze(1)
    before = logits.clone()
    index = best_index(logits)
    assert index.squeeze(0).tolist() == [group.index(max(group)) for group in groups]
    assert torch.equal(index, logits.argmax(dim=0))
    assert torch.equal(logits, before)  # the input is left alone


def test_masks_of_indices_are_the_patterns_in_the_dtype_asked_for():
    masks = masks_from_index(torch.arange(6).unsqueeze(0), torch.zeros(1, dtype=torch.float64))
    assert masks.dtype == torch.float64
    assert masks.squeeze(0).tolist() == [[float(kept) for kept in pattern] for pattern in PATTERNS_24]


def test_expected_mask_is_the_mean_of_the_patterns_under_their_law():
    probs = torch.softmax(torch.randn(6, 2, 5, dtype=torch.float64), dim=0)
    expected = torch.zeros(2, 5, 4, dtype=torch.float64)
    for p, pattern in enumerate(PATTERNS_24):
        expected += probs[p].unsqueeze(-1) * torch.tensor(pattern)
    torch.testing.assert_close(expected_masks(probs), expected)
    torch.testing.assert_close(expected_masks(probs).sum(dim=-1), torch.full((2, 5), 2.0, dtype=torch.float64))
