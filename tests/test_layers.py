import copy
import itertools
import warnings

import pytest
import torch

from k24lab.core.config import MaskConfig
from k24lab.core.layers import DenseLinear, SemiStructuredLinear24
from k24lab.core.masks import PADDING_SCORE, argmax_masks, draw_masks
from k24lab.core.modules import drawn_masks
from k24lab.core.patterns import PATTERNS_24
from k24lab.errors import ConfigError, InputError
from k24lab.ops.library import library

ONES = torch.ones(2)


def make_layer(in_features=6, out_features=3, n_masks=2, **config) -> SemiStructuredLinear24:
    return SemiStructuredLinear24(in_features, out_features, n_masks, config=MaskConfig(**config))


# --- the layer -------------------------------------------------------------------------------------------------


def slow_forward(layer, x, index, temperature):
    """The layer as METHOD describes it, one sample, one output and one group at a time; straight-through."""
    w, alpha, ema = layer.weight, layer.hetero_alpha, layer.ema_tracker.ema_activation
    scale = layer.config.logit_scale
    n_groups = -(-layer.in_features // 4)
    outputs = []
    for m, b, o in itertools.product(range(layer.n_masks), range(x.shape[1]), range(layer.out_features)):
        score = w.abs() * ema[m] * torch.sigmoid(alpha[m])
        mean = score.mean().detach()
        y = layer.bias[o]
        for g in range(n_groups):
            inside = range(4 * g, min(4 * g + 4, layer.in_features))
            kept = [score[o, i] if i in inside else PADDING_SCORE * mean / scale for i in range(4 * g, 4 * g + 4)]
            logits = [sum(s for s, keep in zip(kept, pattern, strict=True) if keep) for pattern in PATTERNS_24]
            pi = torch.softmax(scale * torch.stack(logits) / mean / temperature, dim=0)
            for i in inside:
                soft = sum(pi[p] for p in range(6) if PATTERNS_24[p][i - 4 * g])
                hard = PATTERNS_24[int(index[m, o * n_groups + g])][i - 4 * g]
                y = y + w[o, i] * (hard + soft - soft.detach()) * x[m, b, i]
        outputs.append(y)
    return torch.stack(outputs).reshape(layer.n_masks, x.shape[1], layer.out_features)


@pytest.mark.parametrize("training", [True, False])
def test_layer_equals_the_slow_reference_in_value_and_gradient(training):
    layer = make_layer().double().train(training)
    layer.temperature = 2.0
    layer.ema_tracker.update(torch.rand(2, 6).double() + 0.5, ONES.double())
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    inputs = [layer.weight, layer.bias, x] + ([layer.hetero_alpha] if training else [])
    coefficient = torch.randn(2, 4, 3, dtype=torch.float64)

    torch.manual_seed(11)
    draw = draw_masks([layer], 2.0, layer.config.logit_scale, "annealed" if training else "none")
    slow = slow_forward(layer, x, draw.pattern_index, 2.0)
    if not training:  # the argmax mask is a constant
        mask = draw.masks[0].detach()
        slow = torch.einsum("moi,mbi->mbo", layer.weight * mask, x) + layer.bias
    expected = torch.autograd.grad((slow * coefficient).sum(), inputs)

    torch.manual_seed(11)
    fast = layer(x)
    torch.testing.assert_close(fast, slow)
    for a, b in zip(torch.autograd.grad((fast * coefficient).sum(), inputs), expected, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("noise", ["annealed", "literal", "none"])
def test_coefficients_receive_a_gradient_under_every_noise(noise):
    layer = make_layer(noise=noise)
    layer(torch.randn(2, 8, 6)).square().sum().backward()
    assert (layer.hetero_alpha.grad.abs().sum(dim=(1, 2)) > 0).all()
    assert layer.weight.grad.any() and layer.bias.grad.any()


def test_coefficients_that_are_not_learned_stay_out_of_the_graph():
    layer = SemiStructuredLinear24(6, 3, 2, config=MaskConfig(), learn_masks=False)
    layer(torch.randn(2, 8, 6)).sum().backward()
    assert layer.hetero_alpha.grad is None


@pytest.mark.parametrize("shape", [(2, 6), (2, 5, 6), (2, 3, 5, 6), (2, 0, 6)])
@pytest.mark.parametrize("training", [True, False])
def test_any_number_of_batch_dimensions_is_accepted(shape, training):
    layer = make_layer().train(training)
    y = layer(torch.randn(shape))
    assert y.shape == (*shape[:-1], 3)
    assert layer.ema_tracker.ema_activation.isfinite().all()


@pytest.mark.parametrize(
    ("n_masks", "shape", "expected"),
    [
        (2, (3, 5, 6), r"x of shape \(3, 5, 6\), expected \(2, \*batch, 6\): x\[m\] is for mask m of 2\. .*mask_index"),
        (2, (1, 6), r"x of shape \(1, 6\), expected \(2, \*batch, 6\)"),
        (2, (6,), r"x of shape \(6,\), expected \(2, \*batch, 6\)"),
        (2, (2, 5, 7), r"x of shape \(2, 5, 7\), expected \(2, \*batch, 6\): x\[m\] is for mask m of 2$"),
        (2, (), r"x of shape \(\), expected"),
        (1, (5, 7), r"x of shape \(5, 7\), expected \(\*batch, 6\)"),
        (1, (), r"x of shape \(\), expected"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_input_of_another_shape_is_an_error_that_names_the_sizes(n_masks, shape, expected, training):
    with pytest.raises(ValueError, match=expected):
        make_layer(n_masks=n_masks).train(training)(torch.randn(shape))


def test_input_of_integers_is_an_error():
    with pytest.raises(InputError, match=r"x is torch\.int64, expected floating-point"):
        make_layer()(torch.ones(2, 5, 6, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(6,), (5, 6), (1, 5, 6), (4, 5, 6)])
def test_a_single_mask_takes_any_batch_as_torchs_layer_does(shape):
    layer = make_layer(n_masks=1).eval()
    x = torch.randn(shape)
    expected = torch.nn.functional.linear(x, layer.weight * layer.argmax_mask()[0], layer.bias)
    torch.testing.assert_close(layer(x), expected)


def test_a_layer_without_bias_has_no_such_parameter_and_adds_nothing():
    layer, x = SemiStructuredLinear24(6, 3, 2, bias=False).eval(), torch.randn(2, 5, 6)
    torch.testing.assert_close(layer(x), x @ (layer.weight * layer.argmax_mask()).mT)
    assert "bias" not in layer.state_dict() and len(list(layer.parameters())) == 2
    assert "n_masks=2, bias=False" in repr(layer) and "bias" not in repr(make_layer())


# --- rows of mixed masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (4, 5), (2, 3, 4), (0,)])
@pytest.mark.parametrize("n_masks", [1, 3])
def test_each_row_gets_the_mask_of_its_index(shape, n_masks):
    layer = make_layer(n_masks=n_masks)
    x, index = torch.randn(*shape, 6, requires_grad=True), torch.randint(n_masks, shape)
    mask = draw_masks([layer], 5.0, 10.0, "annealed", torch.Generator().manual_seed(4)).masks[0]
    with drawn_masks(layer, torch.Generator().manual_seed(4)):
        y = layer(x, index)
    expected = torch.einsum("...oi,...i->...o", (layer.weight * mask)[index], x) + layer.bias
    torch.testing.assert_close(y, expected)
    assert y.shape == (*shape, 3)
    if y.numel():
        coefficient, inputs = torch.randn(y.shape), [x, *layer.parameters()]
        wanted = torch.autograd.grad((expected * coefficient).sum(), inputs)
        for a, b in zip(torch.autograd.grad((y * coefficient).sum(), inputs), wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_rows_of_mixed_masks_move_the_running_mean_of_their_own_mask():
    layer = make_layer(n_masks=3)
    x, index = torch.randn(5, 6), torch.tensor([0, 2, 2, 0, 0], dtype=torch.int32)
    layer(x, index)
    ema = layer.ema_tracker.ema_activation
    torch.testing.assert_close(ema[0], x[index == 0].abs().mean(dim=0))
    torch.testing.assert_close(ema[2], x[index == 2].abs().mean(dim=0))
    assert (ema[1] == 1).all()


@pytest.mark.parametrize(
    ("x", "index", "expected"),
    [
        (torch.ones(3, 6), torch.tensor([0, 1, 2]), r"mask_index from 0 to 2, expected 0 to 1: there are 2 masks"),
        (torch.ones(3, 6), torch.tensor([0, 1, -1]), r"mask_index from -1 to 1, expected 0 to 1"),
        (torch.ones(3, 6), torch.ones(3), r"mask_index is torch\.float32, expected integers"),
        (torch.ones(3, 6), torch.ones(3, dtype=torch.bool), r"mask_index is torch\.bool, expected integers"),
        (torch.ones(3, 6), torch.tensor([0, 1]), r"\(3, 6\) with mask_index of shape \(2,\), expected \(\*batch, 6\)"),
        (torch.ones(3, 7), torch.tensor([0, 1, 1]), r"\(3, 7\) with mask_index of shape \(3,\), expected"),
        (torch.ones(6), torch.tensor(1), r"x of shape \(6,\) with mask_index of shape \(\)"),
    ],
)
def test_an_index_that_does_not_fit_is_an_error_that_names_the_sizes(x, index, expected):
    with pytest.raises(InputError, match=expected):
        make_layer()(x, index)


@pytest.fixture
def without_kernels(monkeypatch):
    """Masks by torch, whose products autocast would round."""
    monkeypatch.setenv("K24LAB_KERNELS", "torch")
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.mark.parametrize("training", [True, False])
def test_autocast_computes_in_bfloat16_with_masks_from_float32(training, without_kernels):
    layer, x = make_layer(16, 12).train(training), torch.randn(2, 5, 16)
    layer.ema_tracker.update(torch.rand(2, 16), ONES)
    torch.manual_seed(1)
    mask = copy.deepcopy(layer).mask()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        twin_mask = copy.deepcopy(layer).mask()
        torch.manual_seed(1)
        y = layer(x)
    assert twin_mask.dtype == torch.float32 and torch.equal(twin_mask, mask)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), x @ (layer.weight * mask).mT + layer.bias, rtol=0.02, atol=0.02)
    y.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32 and layer.weight.grad.any()
    assert layer.ema_tracker.ema_activation.dtype == torch.float32


def test_evaluation_uses_the_argmax_mask_and_changes_no_state():
    layer = make_layer()
    layer(torch.randn(2, 5, 6))
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(2, 5, 6)
    layer.eval()
    y = layer(x)
    torch.testing.assert_close(y, torch.einsum("moi,mbi->mbo", layer.weight * argmax_masks([layer])[0], x) + layer.bias)
    assert torch.equal(layer(x), y)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_layer_on_its_own_keeps_the_mean_size_of_what_each_mask_saw():
    layer = make_layer(ema_decay=0.75)
    first, second = torch.randn(2, 4, 5, 6, requires_grad=True), torch.randn(2, 3, 6)
    layer(first)
    torch.testing.assert_close(layer.ema_tracker.ema_activation, first.detach().abs().mean(dim=(1, 2)))
    layer(second)
    expected = 0.75 * first.detach().abs().mean(dim=(1, 2)) + 0.25 * second.abs().mean(dim=1)
    torch.testing.assert_close(layer.ema_tracker.ema_activation, expected)
    assert not layer.ema_tracker.ema_activation.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_input_that_is_no_number_does_not_stay_in_the_running_mean(bad):
    layer, x = SemiStructuredLinear24(8, 4, 3), torch.rand(3, 5, 8)
    layer(x)
    before = layer.ema_tracker.ema_activation.clone()
    spoilt = 2 * x
    spoilt[0, 0, 3] = bad
    layer(spoilt)
    after = layer.ema_tracker.ema_activation
    assert after[0, 3] == before[0, 3] and after.isfinite().all()
    others = torch.ones(3, 8, dtype=torch.bool).index_put((torch.tensor(0), torch.tensor(3)), torch.tensor(False))
    assert (after[others] > before[others]).all()


def test_training_moves_the_selection_frequency_towards_the_masks_drawn():
    layer = make_layer(8, 4, noise="none")
    mask = argmax_masks([layer])[0]
    for _ in range(3):
        layer(torch.ones(2, 1, 8))  # equal activations leave the argmax where it is
    expected = torch.where(mask > 0, 1 - 0.5 * 0.99**3, 0.5 * 0.99**3)
    torch.testing.assert_close(layer.selection_frequency, expected)


def test_masks_differ_between_agents_and_weights_are_shared():
    layer = make_layer(16, 16, 3, score_weight_power=0.0)
    a, b, c = argmax_masks([layer])[0]
    assert not torch.equal(a, b) and not torch.equal(b, c)
    assert layer.weight.shape == (16, 16)
    names = dict(layer.named_parameters())
    assert {n: p.numel() for n, p in names.items()} == {"weight": 256, "bias": 16, "hetero_alpha": 768}


@pytest.mark.parametrize("sizes", [(0, 3, 2), (6, 0, 2), (6, 3, 0), (-4, 3, 2)])
def test_sizes_below_one_are_errors_that_name_the_argument(sizes):
    name = ("in_features", "out_features", "n_masks")[[v < 1 for v in sizes].index(True)]
    with pytest.raises(ConfigError, match=rf"{name} = -?\d must be a whole number, at least 1"):
        SemiStructuredLinear24(*sizes)


@pytest.mark.parametrize("noise", ["annealed", "literal", "none"])
def test_bfloat16_parameters_give_bfloat16_outputs_and_finite_gradients(noise):
    layer = make_layer(10, 5, noise=noise).bfloat16()
    y = layer(torch.randn(2, 7, 10, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad.dtype == torch.bfloat16 and parameter.grad.isfinite().all()


@pytest.mark.parametrize("n_networks", [1, 3])
def test_dense_layers_start_as_torchs_do(n_networks):
    torch.manual_seed(0)
    layer = DenseLinear(100, 200, n_networks)
    for parameter in (layer.weight, layer.bias):
        assert len(parameter) == n_networks and 0.095 < parameter.abs().max() <= 0.1
        assert parameter.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.1)


def test_deep_copy_is_equal_and_independent():
    layer = make_layer()
    layer(torch.randn(2, 5, 6))
    twin = copy.deepcopy(layer)
    before = copy.deepcopy(twin.state_dict())
    x = torch.randn(2, 5, 6)
    assert torch.equal(layer.eval()(x), twin.eval()(x))
    layer.train()(x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_layer_on_the_gpu_equals_the_layer_on_the_cpu():
    layer = make_layer(10, 8, 3).eval()
    x = torch.randn(3, 5, 10)
    expected = layer(x)
    layer = layer.cuda()
    torch.testing.assert_close(layer(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)
    layer.train()(x.cuda()).sum().backward()
    assert layer.hetero_alpha.grad.is_cuda and layer.ema_tracker.ema_activation.is_cuda


@pytest.mark.parametrize("training", [False, True])
def test_stacked_parameters_in_vmap_compute_what_each_layer_does(training):
    """As libraries do with ensembles of critics: one module, and the parameters of several stacked."""
    config = MaskConfig(noise="none")  # in training mode the argmax masks too, but with their gradient
    layers = [SemiStructuredLinear24(10, 6, 3, config=config) for _ in range(2)]
    x = torch.randn(3, 5, 10)
    params, buffers = torch.func.stack_module_state(layers)
    expected = [layer.train(training)(x) for layer in layers]
    module = SemiStructuredLinear24(10, 6, 3, config=config).train(training)

    def call(params, buffers):
        return torch.func.functional_call(module, {**params, **buffers}, (x,))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        found = torch.vmap(call, randomness="different")(params, buffers)
    torch.testing.assert_close(found, torch.stack(expected))
    for k, layer in enumerate(layers):  # the running activations have moved
        torch.testing.assert_close(buffers["ema_tracker.ema_activation"][k], layer.ema_tracker.ema_activation)
    found.square().sum().backward()
    torch.stack(expected).square().sum().backward()
    for name, stacked in params.items():
        for k, layer in enumerate(layers):
            grad = layer.get_parameter(name).grad
            if grad is None:
                assert stacked.grad is None or not stacked.grad[k].any()
            else:
                torch.testing.assert_close(stacked.grad[k], grad)
