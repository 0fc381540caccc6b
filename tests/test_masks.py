import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from k24lab.core.config import MaskConfig
from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.masks import PADDING_SCORE, argmax_masks, draw_masks, groups_per_layer, network_logits
from k24lab.core.patterns import PATTERNS_24
from k24lab.ops.library import library

NOISES = ("annealed", "literal", "none")
TEMPERATURES = (5.0, 1.0, 0.1)
DOCUMENT = MaskConfig(hetero_init_scale=0.01)  # the initial spread of the original design


def make_layer(in_features=9, out_features=5, n_masks=3, **config) -> SemiStructuredLinear24:
    return SemiStructuredLinear24(in_features, out_features, n_masks, config=MaskConfig(**config))


def assert_two_of_four(mask: torch.Tensor) -> None:
    """Only 0 and 1; two of each whole group, at most two of a group that the edge cuts."""
    assert ((mask == 0) | (mask == 1)).all()
    whole = mask.shape[-1] // 4 * 4
    assert (mask[..., :whole].unflatten(-1, (-1, 4)).sum(dim=-1) == 2).all()
    assert (mask[..., whole:].sum(dim=-1) <= 2).all()


def spoil(layer: SemiStructuredLinear24, kind: str) -> None:
    """Make the scores of a layer awkward."""
    with torch.no_grad():
        if kind == "ties":
            layer.weight.fill_(0.5)
            layer.hetero_alpha.zero_()
        elif kind == "zero weights":
            layer.weight.zero_()
        elif kind == "half zero":
            layer.weight[..., ::2] = 0
        elif kind == "zero activations":
            layer.ema_tracker.ema_activation.zero_()
        elif kind == "one mask without activations":
            layer.ema_tracker.ema_activation[0] = 0
        elif kind == "tiny weights":
            layer.weight.mul_(1e-30)
        elif kind == "huge weights":
            layer.weight.mul_(1e30)


KINDS = (
    "plain ties zero_weights half_zero zero_activations one_mask_without_activations tiny_weights huge_weights"
).split()


@settings(deadline=None, max_examples=80)
@given(
    sizes=st.tuples(st.integers(1, 13), st.integers(1, 6), st.integers(1, 4)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    noise=st.sampled_from(NOISES),
    temperature=st.sampled_from(TEMPERATURES),
    kind=st.sampled_from([k.replace("_", " ") for k in KINDS]),
    seed=st.integers(0, 1000),
)
def test_drawn_and_argmax_masks_are_exactly_two_of_four(sizes, dtype, noise, temperature, kind, seed):
    torch.manual_seed(seed)
    layer = make_layer(*sizes, noise=noise).to(dtype)
    spoil(layer, kind)
    drawn = draw_masks([layer], temperature, 10.0, noise)
    for mask in (drawn.masks[0].detach(), argmax_masks([layer])[0]):
        assert mask.shape == layer.hetero_alpha.shape
        assert mask.dtype == dtype
        assert_two_of_four(mask)
    assert drawn.pattern_probs.isfinite().all()
    torch.testing.assert_close(drawn.pattern_probs.sum(dim=0), torch.ones_like(drawn.pattern_probs[0]))
    drawn.masks[0].float().sum().backward()
    assert layer.hetero_alpha.grad.isfinite().all()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_gradient_is_finite_where_weights_are_exactly_zero(power):
    layer = make_layer(score_weight_power=power, score_ema_power=power)
    with torch.no_grad():
        layer.weight[0] = 0
        layer.ema_tracker.ema_activation[:, 2] = 0
    mask = draw_masks([layer], 1.0, 10.0, "annealed").masks[0]
    (layer.weight * mask).square().sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.hetero_alpha.grad.isfinite().all()


def test_argmax_mask_keeps_the_two_largest_scores_of_each_group():
    layer = make_layer(11, 7)  # distinct scores, three entries in the last group
    scores, mask = layer.scores().detach(), argmax_masks([layer])[0]
    for m, o in itertools.product(range(3), range(7)):
        for start in (0, 4, 8):
            group = scores[m, o, start : start + 4]
            kept = set(group.topk(2).indices.tolist())
            assert set(mask[m, o, start : start + 4].nonzero().flatten().tolist()) == kept


def test_argmax_of_tied_scores_is_the_first_pattern():
    layer = make_layer(8, 2)
    spoil(layer, "ties")
    assert (argmax_masks([layer])[0] == torch.tensor([1.0, 1, 0, 0]).repeat(2)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_layers_of_different_dtypes_are_drawn_together(dtype):
    layers = [SemiStructuredLinear24(12, 5, 3), SemiStructuredLinear24(8, 4, 3).to(dtype)]
    draw = draw_masks(layers, 1.0, 10.0, "annealed", torch.Generator().manual_seed(0))
    for masks in (draw.masks, argmax_masks(layers)):
        for layer, mask in zip(layers, masks, strict=True):
            assert (mask.reshape(3, layer.out_features, -1, 4).sum(dim=-1) == 2).all()


def test_no_layers_have_no_masks():
    assert argmax_masks([]) == []


def test_layers_drawn_together_keep_their_own_masks_and_laws():
    a, b = make_layer(9, 5), make_layer(4, 7)
    together = draw_masks([a, b], 0.7, 10.0, "none")
    assert groups_per_layer([a, b]) == [15, 7]
    for layer, mask, probs in zip([a, b], together.masks, together.pattern_probs.split([15, 7], dim=2), strict=True):
        alone = draw_masks([layer], 0.7, 10.0, "none")
        assert torch.equal(mask, alone.masks[0])
        torch.testing.assert_close(probs, alone.pattern_probs)


def test_drawn_mask_is_the_pattern_of_its_index():
    layer = make_layer(8, 3)
    draw = draw_masks([layer], 1.0, 10.0, "annealed")
    expected = torch.tensor(PATTERNS_24, dtype=torch.float32)[draw.pattern_index].reshape(3, 3, 8)
    assert torch.equal(draw.masks[0].detach(), expected)


def test_same_generator_state_gives_the_same_draw_and_leaves_the_global_one_alone():
    layer = make_layer()
    for noise in ("annealed", "literal"):
        before = torch.get_rng_state()
        draws = [
            draw_masks([layer], 1.0, 3.0, noise, torch.Generator().manual_seed(s)).pattern_index for s in (5, 5, 6)
        ]
        assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_annealed_masks_have_the_law_softmax_of_z_over_temperature(temperature):
    n = 20_000
    layer = make_layer(4, n, 1)
    with torch.no_grad():  # n rows of the same scores
        layer.weight.copy_(torch.tensor([0.3, -0.2, 0.25, 0.1]).expand(n, 4))
        layer.hetero_alpha.copy_(torch.tensor([0.4, 1.0, -0.5, 0.8]).expand(1, n, 4))
    scores = torch.tensor([0.3, 0.2, 0.25, 0.1]) * torch.sigmoid(torch.tensor([0.4, 1.0, -0.5, 0.8]))
    z = torch.stack([3.0 * scores[torch.tensor(p, dtype=torch.bool)].sum() / scores.mean() for p in PATTERNS_24])
    torch.testing.assert_close(network_logits([layer], 3.0)[:, 0, 7].detach(), z)
    law = torch.softmax(z / temperature, dim=0)
    draw = draw_masks([layer], temperature, 3.0, "annealed", torch.Generator().manual_seed(1))
    torch.testing.assert_close(draw.pattern_probs[:, 0, 7], law)
    share = torch.bincount(draw.pattern_index.flatten(), minlength=6) / n
    assert (share - law).abs().max() < 4 * (0.25 / n) ** 0.5


def share_of_changes(layer, noise, temperature):
    a, b = (draw_masks([layer], temperature, 10.0, noise).pattern_index for _ in range(2))
    return (a != b).float().mean().item()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_literal_draws_are_chance_at_every_temperature(temperature):
    layer = SemiStructuredLinear24(64, 64, 3, config=DOCUMENT)
    assert share_of_changes(layer, "literal", temperature) == pytest.approx(5 / 6, abs=0.03)


def test_annealed_draws_settle_when_the_temperature_is_low():
    layer = SemiStructuredLinear24(64, 64, 3, config=DOCUMENT)
    shares = [share_of_changes(layer, "annealed", temperature) for temperature in TEMPERATURES]
    assert shares[0] > shares[1] > shares[2]
    assert shares[0] > 0.4 and shares[2] < 0.1
    assert share_of_changes(layer, "none", 5.0) == 0


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_literal_noise_is_torchs_hard_gumbel_softmax_of_the_raw_scores(temperature):
    layer = make_layer(8, 5).double()
    coefficient = torch.randn(layer.hetero_alpha.shape, dtype=torch.float64)
    torch.manual_seed(7)
    mask = draw_masks([layer], temperature, 10.0, "literal").masks[0]
    (grad,) = torch.autograd.grad((mask * coefficient).sum(), layer.hetero_alpha)

    patterns = torch.tensor(PATTERNS_24, dtype=torch.float64)
    raw = torch.einsum("mogj,pj->pmog", layer.scores().unflatten(-1, (-1, 4)), patterns)
    torch.manual_seed(7)
    one_hot = F.gumbel_softmax(raw, tau=temperature, hard=True, dim=0)
    expected = torch.einsum("pmog,pj->mogj", one_hot, patterns).flatten(-2)
    (expected_grad,) = torch.autograd.grad((expected * coefficient).sum(), layer.hetero_alpha)
    torch.testing.assert_close(mask, expected)
    torch.testing.assert_close(grad, expected_grad)


def slow_soft_mask(layer, temperature, logit_scale, detach_mean=True):
    """Probability of each entry to be kept, one group at a time."""
    w, alpha, ema = layer.weight, layer.hetero_alpha, layer.ema_tracker.ema_activation
    m_, o_, i_ = alpha.shape
    rows = []
    for m in range(m_):
        score = w.abs() * torch.sigmoid(alpha[m]) * ema[m]
        mean = score.detach().mean() if detach_mean else score.mean()
        for o in range(o_):
            for start in range(0, i_, 4):
                padding = PADDING_SCORE * mean / logit_scale
                kept = [score[o, i] if i < i_ else padding for i in range(start, start + 4)]
                logits = torch.stack([sum(s for s, k in zip(kept, p, strict=True) if k) for p in PATTERNS_24])
                pi = torch.softmax(logit_scale * logits / mean / temperature, dim=0)
                rows += [sum(pi[p] * PATTERNS_24[p][j] for p in range(6)) for j in range(4) if start + j < i_]
    return torch.stack(rows).reshape(m_, o_, i_)


def gradients(mask, coefficient, layer):
    return torch.autograd.grad((mask * coefficient).sum(), [layer.hetero_alpha, layer.weight])


@pytest.mark.parametrize("noise", ["annealed", "none"])
def test_gradient_of_a_drawn_mask_is_that_of_the_soft_mask(noise):
    layer = make_layer(7, 3, 2).double()
    layer.ema_tracker.ema_activation.uniform_(0.5, 2)
    coefficient = torch.randn(layer.hetero_alpha.shape, dtype=torch.float64)
    fast = gradients(draw_masks([layer], 1.3, 4.0, noise).masks[0], coefficient, layer)
    slow = gradients(slow_soft_mask(layer, 1.3, 4.0), coefficient, layer)
    for a, b in zip(fast, slow, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b)


def test_normalisation_has_no_gradient_through_the_mean():
    layer = make_layer(8, 2, 2).double()
    coefficient = torch.randn(layer.hetero_alpha.shape, dtype=torch.float64)
    fast, *_ = gradients(draw_masks([layer], 1.0, 4.0, "none").masks[0], coefficient, layer)
    through, *_ = gradients(slow_soft_mask(layer, 1.0, 4.0, detach_mean=False), coefficient, layer)
    assert (fast - through).abs().max() > 1e-4
    # An entry whose own group has no weight in the loss feels nothing.
    alone = torch.zeros_like(coefficient)
    alone[0, 0, :4] = coefficient[0, 0, :4]
    grad, *_ = gradients(draw_masks([layer], 1.0, 4.0, "none").masks[0], alone, layer)
    assert grad[0, 0, :4].abs().min() > 0
    grad[0, 0, :4] = 0
    assert not grad.any()


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_law_does_not_depend_on_the_size_of_the_weights(factor):
    layer = make_layer()
    before = draw_masks([layer], 1.0, 10.0, "none").pattern_probs
    layer.weight.data.mul_(factor)
    torch.testing.assert_close(draw_masks([layer], 1.0, 10.0, "none").pattern_probs, before)


def test_argmax_masks_and_masks_under_no_grad_carry_no_gradient():
    layer = make_layer()
    assert not argmax_masks([layer])[0].requires_grad
    with torch.no_grad():
        assert not draw_masks([layer], 1.0, 10.0, "annealed").masks[0].requires_grad


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
def test_score_is_the_product_of_weight_activation_and_coefficient(p, q):
    layer = make_layer(5, 3, 2, score_weight_power=p, score_ema_power=q).double()
    layer.ema_tracker.ema_activation.uniform_(0.5, 2)
    for m, o, i in itertools.product(range(2), range(3), range(5)):
        expected = layer.weight[o, i].abs() ** p * layer.ema_tracker.ema_activation[m, i] ** q
        expected = expected * torch.sigmoid(layer.hetero_alpha[m, o, i])
        torch.testing.assert_close(layer.scores()[m, o, i], expected)


@pytest.mark.parametrize("in_features", [1, 2, 3, 5, 6])
def test_a_padded_group_keeps_all_the_real_weights_it_may_at_every_temperature(in_features):
    layer = make_layer(in_features, 16, 3)
    layer.hetero_alpha.data.normal_(0, 10)  # some coefficients nearly 0: as low as the padding would be
    real = (in_features - 1) % 4 + 1
    for temperature in (5.0, 0.1):
        mask = draw_masks([layer], temperature, 10.0, "annealed").masks[0]
        kept = mask[..., in_features - real :].sum(dim=-1)
        assert (kept == min(real, 2)).all()


@pytest.mark.parametrize(("score_gradient", "reaches_weights"), [("alpha", False), ("td", True), ("all", True)])
def test_scores_teach_the_weights_only_with_the_switch(score_gradient, reaches_weights):
    layer = make_layer(score_gradient=score_gradient)
    alpha, weight = torch.autograd.grad(layer.scores().sum(), [layer.hetero_alpha, layer.weight], allow_unused=True)
    assert alpha.abs().min() > 0
    assert (weight is not None) == reaches_weights


@pytest.mark.parametrize("switch", ["", "torch"])
@pytest.mark.parametrize("in_features", [5, 6])
def test_a_cut_group_keeps_its_weights_even_where_their_scores_are_zero(in_features, switch, monkeypatch):
    monkeypatch.setenv("K24LAB_KERNELS", switch)
    library.cache_clear()
    layer = make_layer(in_features)
    with torch.no_grad():
        layer.weight[:, 4:] = 0
    for mask in (argmax_masks([layer])[0], draw_masks([layer], 0.1, 10.0, "annealed").masks[0]):
        assert (mask[..., 4:] == 1).all()
    library.cache_clear()
