"""The C kernels against torch, build by build; a machine without a compiler has none, and torch does their work."""

import ctypes
import importlib.machinery
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from k24lab.core import masks
from k24lab.core.config import MaskConfig
from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.masks import argmax_masks, draw_masks
from k24lab.errors import ConfigError
from k24lab.lab.train import train
from k24lab.marl import agent
from k24lab.marl.learner import build_learner
from k24lab.ops import acting, calls as ops, library as kernels
from k24lab.ops.acting import LAYERS
from k24lab.ops.linear import LayerWeights, weighted_abs_sum

SUFFIXES = importlib.machinery.EXTENSION_SUFFIXES
RUN_HERE = kernels.BUILDS.get(torch.backends.cpu.get_cpu_capability(), ())
BUILDS = {
    name: path
    for name in ("_k24", *(f"_k24_{build}" for build in RUN_HERE))
    for suffix in SUFFIXES
    if (path := Path(kernels.__file__).with_name(name + suffix)).exists()
}
needs_kernels = pytest.mark.skipif(not BUILDS, reason="the kernels are not built: no C compiler")


@pytest.fixture(params=BUILDS or ["none"])
def build(request, monkeypatch):
    """Each build in turn."""
    if request.param not in BUILDS:
        pytest.skip("the kernels are not built: no C compiler")
    lib = ctypes.CDLL(str(BUILDS[request.param]))
    for module in (kernels, ops):
        monkeypatch.setattr(module, "library", lambda: lib)


@pytest.fixture
def without(monkeypatch):
    """Call a function with torch alone."""

    def call(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "library", lambda: None)
            return function(*args)

    return call


def random_24(k, rows, columns):
    """Matrices with two random entries in each group of four, fewer in the last one if it is cut."""
    groups = torch.rand(k, rows, -(-columns // 4), 4)
    kept = torch.zeros_like(groups).scatter_(-1, groups.topk(2).indices, 1.0)
    return torch.randn(k, rows, columns) * kept.flatten(2)[..., :columns]


# --- matrix products -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 64, 65, 200])
@pytest.mark.parametrize(("rows", "inputs"), [(5, 1), (7, 18), (130, 64), (3, 300)])
def test_packed_matrices_multiply_as_dense_ones(build, rows, inputs, columns):
    weight, x = random_24(2, rows, inputs), torch.randn(2, inputs, columns)
    bias = torch.randn(2, rows)
    torch.testing.assert_close(ops.matmul(ops.pack(weight), x), weight @ x)
    torch.testing.assert_close(ops.matmul(ops.pack(weight), x, bias), weight @ x + bias[..., None])
    expected = (weight @ x + bias[:1, :, None]).relu()
    torch.testing.assert_close(ops.matmul(ops.pack(weight), x, bias[:1], relu=True), expected)


def test_activations_may_be_a_part_of_a_larger_array(build):
    weight, whole = random_24(2, 6, 8), torch.randn(2, 8, 5, 7)
    part = whole[:, :, 1:].flatten(2)
    assert not part.is_contiguous()
    torch.testing.assert_close(ops.matmul(ops.pack(weight), part), weight @ part)
    scattered = torch.randn(2, 9, 8).mT
    torch.testing.assert_close(ops.matmul(ops.pack(weight), scattered), weight @ scattered)


def test_nan_and_infinity_are_not_lost(build):
    weight, x = random_24(1, 4, 8), torch.randn(1, 8, 3)
    weight[0, 0, weight[0, 0].nonzero()[0]] = torch.nan
    x[0, weight[0, 1].nonzero()[0], 2] = torch.inf
    y = ops.matmul(ops.pack(weight), x, torch.zeros(1, 4), relu=True)
    assert y[0, 0].isnan().all() and not y[0, 1, :2].isnan().any()
    assert y[0, 1, 2] in (torch.inf, 0) and (weight @ x)[0, 1, 2].isinf()


def test_a_matrix_that_is_not_24_is_refused(build):
    with pytest.raises(ValueError, match=r"\(1, 3, 8\) is not 2:4"):
        ops.pack(torch.ones(1, 3, 8))


# --- networks --------------------------------------------------------------------------------------------------


def network_weights(k, size, observed, actions, sparse, shared):
    """Parameters of a network: six matrices, then six biases."""
    sizes = ((size, observed), (3 * size, size), (3 * size, size), (size, size), (size, size), (actions, size))
    make, n = random_24 if sparse else torch.randn, 1 if shared else k
    return [make(n, *of) / of[1] ** 0.5 for of in sizes] + [torch.randn(1, of[0]) for of in sizes]


@pytest.mark.parametrize(("sparse", "shared"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("size", "steps", "batch"), [(4, 1, 1), (5, 3, 33), (64, 4, 32), (130, 2, 8), (16, 5, 12), (7, 6, 70)]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_equals_torchs_in_value_and_gradient(
    build, without, size, steps, batch, shared, sparse, threads, monkeypatch
):
    monkeypatch.setattr(kernels, "_threads", threads)
    torch.manual_seed(1)  # with seed 0 a unit is so close to its ReLU's corner that rounding decides its gradient
    k, observed, actions = 3, 6, 5  # two threads share one of the networks
    given = [torch.randn(k, observed, steps, batch), torch.randn(k, size, batch)]
    given = [p.requires_grad_() for p in (*given, *network_weights(k, size, observed, actions, sparse, shared))]
    coefficient, for_last = torch.randn(k, actions, steps, batch), torch.randn(k, size, batch)

    def run(sparse):
        weights = {
            name: LayerWeights(w, b, ops.pack(w.detach()) if sparse else None)
            for name, w, b in zip(LAYERS, given[2:8], given[8:], strict=True)
        }
        done = agent.unroll(weights, *given[:2])
        total = (done.q_values * coefficient).sum() + (done.hidden * for_last).sum()
        with torch.no_grad():
            again = agent.unroll(weights, *given[:2])
        return [*done[:2], *again[:2], *done.inputs.values(), *torch.autograd.grad(total, given)]

    for found, again, expected in zip(run(sparse), run(sparse), without(run, False), strict=True):
        assert torch.equal(found, again)
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)


def test_gates_are_right_to_the_last_digits_over_the_whole_range(build):
    x = torch.linspace(-120, 120, 4000)

    def state(gate, z):
        """The state after one step from 1 where a gate (1: z, 2: n) sees x; `z` is the bias of gate z."""
        matrices = [torch.tensor([[[1.0], [-1.0]]])]  # fc1 hands both signs of x through its ReLU
        matrices += [torch.zeros(1, 6, 2), torch.zeros(1, 6, 2)] + 3 * [torch.zeros(1, 2, 2)]
        matrices[1][0, 2 * gate] = torch.tensor([1.0, -1.0])
        biases = [torch.zeros(1, len(matrix[0])) for matrix in matrices]
        biases[2][0, 2] = z
        weights = {name: LayerWeights(w, b) for name, w, b in zip(LAYERS, matrices, biases, strict=True)}
        return agent.unroll(weights, x.view(1, 1, 1, -1), torch.ones(1, 2, 4000)).hidden[0, 0]

    torch.testing.assert_close(state(gate=1, z=0.0), torch.sigmoid(x), atol=1e-37, rtol=1e-6)  # n = 0
    torch.testing.assert_close(state(gate=2, z=-200.0), torch.tanh(x), atol=2e-7, rtol=1e-6)


# --- masks -----------------------------------------------------------------------------------------------------


def make_layers(n_masks=3, learn=True, **changes):
    config = MaskConfig(**changes)
    layers = [
        SemiStructuredLinear24(i, o, n_masks, config=config, learn_masks=learn) for i, o in ((18, 5), (64, 3), (8, 4))
    ]
    for layer in layers:
        layer.ema_tracker.ema_activation.uniform_(0.2, 2)
    return layers


@pytest.mark.parametrize("noise", ["annealed", "none"])
@pytest.mark.parametrize("temperature", [5.0, 0.1])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"score_gradient": "all"},
        {"score_gradient": "alpha"},
        {"ema_scope": "shared"},
        {"score_weight_power": 0.0, "score_ema_power": 0.0},
        {"score_weight_power": 0.0},
    ],
)
def test_drawn_masks_equal_torchs_in_value_and_gradient(build, without, changes, temperature, noise):
    layers = make_layers(**changes)
    wanted = [layer.hetero_alpha for layer in layers] + [layer.weight for layer in layers]
    weights = [torch.randn(3, layer.out_features, layer.in_features) for layer in layers]
    for_probs = torch.randn(6, 3, 5 * 5 + 3 * 16 + 4 * 2)

    def run():
        generator = torch.Generator().manual_seed(5)
        draw = draw_masks(layers, temperature, 10.0, noise, generator)
        of_masks = sum((mask * w).sum() for mask, w in zip(draw.masks, weights, strict=True))
        of_probs = (draw.pattern_probs * for_probs).sum()
        grads = [
            torch.autograd.grad(loss, wanted, retain_graph=True, materialize_grads=True)
            for loss in (of_masks, of_probs, of_masks + of_probs)
        ]
        return draw, [g for part in grads for g in part]

    with pytest.MonkeyPatch.context() as patch:  # the fast path leaves torch's formula out
        patch.setattr(masks, "network_logits", lambda *given: pytest.fail("the kernels were not used"))
        fast, fast_grads = run()
    slow, slow_grads = without(run)
    assert torch.equal(fast.pattern_index, slow.pattern_index)
    assert all(torch.equal(a, b) for a, b in zip(fast.masks, slow.masks, strict=True))
    torch.testing.assert_close(fast.pattern_probs, slow.pattern_probs, atol=1e-6, rtol=1e-4)
    for found, expected in zip(fast_grads, slow_grads, strict=True):
        # Differences of nearly equal numbers, divided by the temperature: exact to the scale of the largest.
        torch.testing.assert_close(found, expected, atol=1e-4 * (1 + expected.abs().max().item()), rtol=1e-3)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=24, max_size=24))
@needs_kernels
def test_ties_go_to_the_first_pattern(scores):
    layer = SemiStructuredLinear24(8, 3, 1, config=MaskConfig(score_weight_power=0.0, score_ema_power=0.0))
    layer.hetero_alpha.data = torch.tensor(scores).view(1, 3, 8)
    with pytest.MonkeyPatch.context() as patch:
        fast = argmax_masks([layer])[0]
        patch.setattr(kernels, "library", lambda: None)
        assert torch.equal(fast, argmax_masks([layer])[0])


def test_scores_of_zero_and_fixed_masks_are_no_special_case(build, without):
    layers = make_layers(learn=False, score_weight_power=0.0, score_ema_power=0.0)
    assert not draw_masks(layers, 1e-3, 10.0, "none").masks[0].requires_grad
    layers = make_layers()
    layers[1].ema_tracker.ema_activation.zero_()
    for fast, slow in zip(argmax_masks(layers), without(argmax_masks, layers), strict=True):
        assert torch.equal(fast, slow)


def test_a_layer_on_its_own_has_torchs_gradient_though_its_activations_move(build, without):
    x = 5 * torch.randn(3, 7, 18)

    def run():
        torch.manual_seed(2)
        (layer,) = make_layers(noise="none")[:1]
        loss = (layer(x).square().sum() + layer(2 * x).square().sum()) / 100
        return torch.autograd.grad(loss, [layer.weight, layer.hetero_alpha])

    for found, expected in zip(run(), without(run), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-3)


def test_parameters_in_any_memory_order_give_the_same_masks(build):
    (layer,) = make_layers()[:1]
    expected = argmax_masks([layer])[0]
    layer.weight.data = layer.weight.data.T.contiguous().T
    layer.hetero_alpha.data = layer.hetero_alpha.data.mT.contiguous().mT
    assert not layer.weight.is_contiguous() and torch.equal(argmax_masks([layer])[0], expected)


@pytest.mark.parametrize("columns", [1, 31, 32, 100])
def test_weighted_sums_of_magnitudes_equal_torchs(build, without, columns):
    x, weight = torch.randn(2, 5, columns), torch.rand(2, columns)
    torch.testing.assert_close(weighted_abs_sum(x, weight), without(weighted_abs_sum, x, weight))


# --- the whole -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"method": "fups"}, {"method": "nops"}, {"method": "k24"}, {"mask_rnn": False}])
def test_an_update_is_the_same_with_and_without_kernels(
    build, without, changes, tiny_config, tiny_spec, random_episodes
):
    learners = []
    for _ in range(2):
        torch.manual_seed(1)
        learners.append(build_learner(tiny_config(**changes), tiny_spec))

    def train(learner):
        return [learner.update(random_episodes(seed=k), t_env=100, log=True) for k in range(3)]

    fast, slow = train(learners[0]), without(train, learners[1])
    for a, b in zip(fast, slow, strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-5)
    for a, b in zip(learners[0].agent.parameters(), learners[1].agent.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_the_switch_and_a_missing_build_leave_the_work_to_torch(monkeypatch, tmp_path, caplog):
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    kernels.library.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv(kernels.SWITCH, "torch")
        assert kernels.library() is None and kernels.describe() == "torch"
        assert not kernels.usable(torch.ones(1)) and not caplog.records
    kernels.library.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "__file__", str(tmp_path / "__init__.py"))
        assert kernels.library() is None and kernels.library() is None
        assert len(caplog.records) == 1 and "not built" in caplog.text  # one notice, not one an update
    kernels.library.cache_clear()


@pytest.mark.skipif("_k24_avx512" not in BUILDS, reason="this processor runs no AVX-512 build")
def test_wider_registers_change_no_bit(monkeypatch):
    weight, bias, x = random_24(3, 70, 50), torch.randn(3, 70), torch.randn(3, 50, 100)
    found = []
    for name in ("_k24_avx2", "_k24_avx512"):
        lib = ctypes.CDLL(str(BUILDS[name]))
        for module in (acting, ops):
            monkeypatch.setattr(module, "library", lambda lib=lib: lib)
        few = acting.PackedLinear(weight, bias)(x.mT.contiguous())
        found.append((ops.matmul(ops.pack(weight), x, bias), few))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))  # so that stored runs repeat on either


@needs_kernels
def test_the_kernels_take_two_threads_and_leave_more_to_torch():
    for n, of_kernels, of_torch in ((1, 1, 1), (2, 2, 1), (3, 1, 3)):
        kernels.use_threads(n)
        assert (kernels.threads(), torch.get_num_threads()) == (of_kernels, of_torch)


def test_kernels_take_float32_on_the_cpu_only(build):
    assert kernels.usable(torch.ones(1))
    assert not kernels.usable(torch.ones(1, dtype=torch.float64)) and not kernels.usable(torch.ones(1, device="meta"))
    assert kernels.describe() in ("avx512", "avx2", "portable")
    torch.set_num_threads(kernels.MOST_THREADS + 1)  # of which torch makes more than one thread can
    assert not kernels.usable(torch.ones(1))


@pytest.mark.parametrize("value", ["Torch", "none", "0"])
def test_a_slip_in_the_switch_of_the_kernels_is_no_silent_use_of_them(value, monkeypatch, tiny_config, home):
    monkeypatch.setenv(kernels.SWITCH, value)
    with pytest.raises(ConfigError, match=f"^K24LAB_KERNELS = '{value}' in the environment must be 'torch' or unset$"):
        train(tiny_config(), progress=False)
    assert not (home / "runs").exists()
    kernels.library.cache_clear()
    with pytest.raises(ConfigError, match="K24LAB_KERNELS"):
        kernels.library()
    monkeypatch.setenv(kernels.SWITCH, "")
    kernels.check_switch()
