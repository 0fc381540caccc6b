"""Every hand-written `autograd.Function` against finite differences of the plain formula, alone and in the network.

The functions and their formulas are in `gradient_cases.py`.
"""

import ast
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gradient_cases import (
    Case,
    draw_case,
    gru_case,
    kept_case,
    linear_case,
    network_case,
    pairs_case,
    seen_case,
    straight_through_case,
)
from torch import Tensor

import k24lab
from k24lab.core.baselines import _Kept, _StraightThrough24
from k24lab.core.config import MaskConfig
from k24lab.core.diversity import _SumOverPairs
from k24lab.ops import library as kernels
from k24lab.ops.gru import _BatchedGRU
from k24lab.ops.linear import _Linear
from k24lab.ops.mask_draws import _Draw, _Seen
from k24lab.ops.network import _Network

IMPLEMENTATIONS = ["torch", "kernels"]  # float64 without the C kernels, float32 with them
STEP = 1e-5  # of finite differences, in float64


def numeric_gradients(formula: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Central differences for every entry of every input."""
    gradients = []
    for k, tensor in enumerate(inputs):
        gradient = torch.zeros_like(tensor)
        for i in range(tensor.numel()):
            values = []
            for step in (STEP, -STEP):
                moved = tensor.clone()
                moved.view(-1)[i] += step
                values.append(formula(*inputs[:k], moved, *inputs[k + 1 :]).item())
            gradient.view(-1)[i] = (values[0] - values[1]) / (2 * STEP)
        gradients.append(gradient)
    return gradients


def check(case: Case, implementation: str) -> None:
    if implementation == "kernels" and kernels.library() is None:
        pytest.skip("the kernels are not built: no C compiler")
    dtype, tolerance = (torch.float64, 1e-6) if implementation == "torch" else (torch.float32, 1e-3)
    given = [x.to(dtype).requires_grad_() for x in case.inputs]
    value = case.function(*given)
    if case.same_value:
        assert value.item() == pytest.approx(case.formula(*case.inputs).item(), rel=tolerance)
    found = torch.autograd.grad(value, given)
    for k, (gradient, expected) in enumerate(zip(found, numeric_gradients(case.formula, case.inputs), strict=True)):
        error = (gradient.double() - expected).abs().max() / expected.abs().max()
        assert expected.any() and error < tolerance, f"input {k}: off by {error:.2g} of the largest entry"


# --- layers and the GRU ----------------------------------------------------------------------------------------

KINDS = [("dense", "torch"), ("shared", "torch"), ("dense", "kernels"), ("shared", "kernels"), ("packed", "kernels")]


@pytest.mark.parametrize(("kind", "implementation"), KINDS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("own_bias", [False, True])
def test_a_layer_has_the_gradient_of_w_x_plus_b(own_bias, relu, kind, implementation):
    check(linear_case(kind != "shared", own_bias, relu, kind == "packed"), implementation)


@pytest.mark.parametrize("own_weight", [False, True])
@pytest.mark.parametrize("own_bias", [False, True])
def test_the_gru_has_the_gradient_of_its_equations(own_bias, own_weight):
    check(gru_case(own_weight, own_bias), "torch")


@pytest.mark.parametrize("make", [lambda: linear_case(True, True, True, False), lambda: gru_case(True, True)])
def test_each_input_may_need_no_gradient(make):
    case = make()
    expected = numeric_gradients(case.formula, case.inputs)
    for wanted in itertools.product([False, True], repeat=len(case.inputs)):
        if any(wanted):
            given = [x.clone().requires_grad_(learns) for x, learns in zip(case.inputs, wanted, strict=True)]
            case.function(*given).backward()
            for x, gradient in zip(given, expected, strict=True):
                assert (x.grad is not None) == x.requires_grad
                if x.grad is not None:
                    torch.testing.assert_close(x.grad, gradient, rtol=1e-6, atol=1e-8)


# --- masks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("make", [pairs_case, seen_case, straight_through_case, kept_case])
def test_losses_and_masks_of_the_baselines_have_their_defined_gradients(make, implementation):
    check(make(), implementation)


MASKS = {
    "td": {},
    "all": {"score_gradient": "all"},
    "alpha": {"score_gradient": "alpha"},
    "argmax": {"noise": "none"},
    "one mean for all": {"ema_scope": "shared"},
    "without weights": {"score_weight_power": 0.0},
    "without activations": {"score_ema_power": 0.0, "score_gradient": "all"},
    "without both": {"score_weight_power": 0.0, "score_ema_power": 0.0},
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("for_mask", "for_probs"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("name", MASKS)
def test_drawn_masks_have_the_gradient_of_expected_masks(name, for_mask, for_probs, implementation):
    if implementation == "kernels" and kernels.library() is None:
        pytest.skip("the kernels are not built: no C compiler")
    case = draw_case(MaskConfig(**MASKS[name]), for_mask, for_probs)
    dtype, tolerance = (torch.float64, 1e-6) if implementation == "torch" else (torch.float32, 1e-3)
    given = [x.to(dtype).requires_grad_() for x in case.inputs]
    found = torch.autograd.grad(case.function(*given), given)
    expected = numeric_gradients(case.formula, case.inputs)
    scale = max(g.abs().max() for g in expected)
    for gradient, right in zip(found, expected, strict=True):
        assert (gradient.double() - right).abs().max() < tolerance * scale
    config = MaskConfig(**MASKS[name])
    moved = bool(config.score_weight_power) and config.score_gradient != "alpha"
    moved = moved and (for_mask or config.score_gradient == "all")
    assert [bool(g.any()) for g in expected] == [True, True, moved, moved]


# --- composed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("implementation", "n_networks", "packed"),
    [("torch", 1, False), ("torch", 2, False), ("kernels", 1, False), ("kernels", 2, False), ("kernels", 2, True)],
)
def test_a_whole_network_has_the_gradient_of_its_equations(implementation, n_networks, packed):
    check(network_case(n_networks, packed), implementation)


# --- none is left out ------------------------------------------------------------------------------------------

# Where each is checked; the function is called as the package calls it, so that its wrapper is checked too.
CHECKED: dict[type, Callable[[], Case]] = {
    _SumOverPairs: pairs_case,
    _StraightThrough24: straight_through_case,
    _Kept: kept_case,
    _Draw: lambda: draw_case(MaskConfig(), True, True),
    _Linear: lambda: linear_case(True, True, True, False),
    _BatchedGRU: lambda: gru_case(True, True),
    _Network: lambda: network_case(2, True),
    _Seen: seen_case,
}


def test_every_function_with_a_gradient_of_its_own_has_a_check():
    found = set()
    for path in Path(k24lab.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any("Function" in ast.unparse(base) for base in node.bases):
                found.add(node.name)
    assert found == {function.__name__ for function in CHECKED}


@pytest.mark.parametrize("function", CHECKED, ids=lambda function: function.__name__)
def test_a_second_derivative_is_refused_and_not_wrong(function):
    by_kernels = function in (_Draw, _Network, _Seen)
    if by_kernels and kernels.library() is None:
        pytest.skip("the kernels are not built: no C compiler")
    case = CHECKED[function]()
    given = [x.to(torch.float32 if by_kernels else torch.float64).requires_grad_() for x in case.inputs]
    factor = torch.ones((), dtype=given[0].dtype, requires_grad=True)  # so that what arrives has a gradient
    (gradient, *_) = torch.autograd.grad(case.function(*given) * factor, given, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
