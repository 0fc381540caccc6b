"""Hand-written `autograd.Function`s beside the plain formulas whose derivatives they must have.

A case gives the function as the package calls it, and a formula in plain torch whose true derivative is the gradient
that the function must have. Where the gradient of a function is defined (straight-through), the formula has another
value than the function.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from k24lab.core.baselines import _Kept, _StraightThrough24
from k24lab.core.config import MaskConfig
from k24lab.core.diversity import _SumOverPairs
from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.masks import PADDING_SCORE, draw_masks
from k24lab.core.patterns import PATTERNS_24
from k24lab.marl.agent import unroll
from k24lab.ops import calls as ops
from k24lab.ops.gru import batched_gru
from k24lab.ops.linear import LayerWeights, linear
from k24lab.ops.mask_draws import seen_through


@dataclass
class Case:
    """A function of tensors and the formula that has its gradient; both give the number that is differentiated."""

    function: Callable[..., Tensor]
    formula: Callable[..., Tensor]
    inputs: list[Tensor]  # in float64
    same_value: bool = True  # whether the formula has the function's value too


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def random_24(k: int, rows: int, columns: int) -> Tensor:
    """2:4 matrices; the last group of a row may be cut."""
    groups = random(k, rows, -(-columns // 4), 4)
    kept = torch.zeros_like(groups).scatter_(-1, groups.abs().topk(2).indices, 1.0)
    return (groups * kept).flatten(2)[..., :columns]


# --- layers and the GRU ----------------------------------------------------------------------------------------


def linear_case(own_weight: bool, own_bias: bool, relu: bool, packed: bool) -> Case:
    k, rows, inputs, columns = 3, 5, 6, 4
    weight = random_24(k, rows, inputs) if packed else random(k if own_weight else 1, rows, inputs)
    bias, x = random(k if own_bias else 1, rows), random(k, inputs, 2, 2)
    up = random(k, rows, columns, seed=7)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        own = ops.pack(weight.detach()) if packed else None
        y = linear(LayerWeights(weight, bias, own), x, relu=relu)
        return (y.flatten(2) * up.to(y)).sum()

    def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = weight @ x.flatten(2) + bias.unsqueeze(2)
        return ((y.clamp_min(0) if relu else y) * up).sum()

    return Case(function, formula, [x, weight, bias])


def cell(gate: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One step of a GRU of one network; columns are rows of a batch. Gates in the order r, z, n."""
    size = len(h)
    side = weight @ h + bias.unsqueeze(1)
    r, z = (torch.sigmoid(gate[i * size : (i + 1) * size] + side[i * size : (i + 1) * size]) for i in (0, 1))
    return (1 - z) * torch.tanh(gate[2 * size :] + r * side[2 * size :]) + z * h


def gru_case(own_weight: bool, own_bias: bool) -> Case:
    k, size, steps, rows = 2, 4, 3, 2
    weight = random(k if own_weight else 1, 3 * size, size)
    bias, gate = random(k if own_bias else 1, 3 * size), random(k, 3 * size, steps, rows)
    up = random(k, size, steps, rows, seed=7)

    def function(gate: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (batched_gru(gate, hidden, weight, bias) * up.to(gate)).sum()

    def formula(gate: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for n in range(k):
            h = hidden[n]
            for t in range(steps):
                h = cell(gate[n, :, t], h, weight[n % len(weight)], bias[n % len(bias)])
                total = total + (h * up[n, :, t]).sum()
        return total

    return Case(function, formula, [gate, random(k, size, rows), weight, bias])


# --- masks -----------------------------------------------------------------------------------------------------


def pairs_case() -> Case:
    probs = torch.softmax(random(6, 4, 3), dim=0)

    def formula(probs: Tensor) -> Tensor:
        return sum((probs[:, a] * probs[:, b]).sum() for a in range(4) for b in range(4) if a != b)

    return Case(lambda probs: _SumOverPairs.apply(probs), formula, [probs])


def seen_case() -> Case:
    """Two weights of different sizes, each through three masks."""
    given = [random(3, 8), random(2, 5), random(3, 3, 8), random(3, 2, 5)]
    ups = [random(3, 3, 8, seed=7), random(3, 2, 5, seed=7)]

    def formula(*given: Tensor) -> Tensor:
        return sum((w * m * up.to(w)).sum() for w, m, up in zip(given[:2], given[2:], ups, strict=True))

    def function(*given: Tensor) -> Tensor:
        products = seen_through(given[:2], given[2:])
        return sum((y * up.to(y)).sum() for y, up in zip(products, ups, strict=True))

    return Case(function, formula, given)


def straight_through_case() -> Case:
    """The gradient passes the mask unchanged, and that of half the squares of dropped weights is added."""
    up, decay, mask = random(3, 8, seed=7), 0.3, (random_24(1, 3, 8)[0] != 0).double()

    def function(weight: Tensor) -> Tensor:
        return (_StraightThrough24.apply(weight, mask.to(weight), decay) * up.to(weight)).sum()

    def formula(weight: Tensor) -> Tensor:
        return (weight * up).sum() + decay / 2 * ((1 - mask) * weight**2).sum()

    return Case(function, formula, [random(3, 8)], same_value=False)


def kept_case() -> Case:
    """The gradient that arrives is squashed by tanh."""
    up = 2 * random(3, 8, seed=7)
    return Case(
        lambda x: (_Kept.apply(x) * up.to(x)).sum(),
        lambda x: (x * torch.tanh(up)).sum(),
        [random(3, 8)],
        same_value=False,
    )


SIZES = ((6, 3), (8, 2))  # inputs and outputs of two layers; the last group of the first is cut
TEMPERATURE, LOGIT_SCALE = 0.9, 3.0


def draw_case(config: MaskConfig, for_mask: bool, for_probs: bool) -> Case:
    """Expected masks and pattern distributions; the mean score is a constant of the derivative."""
    n_masks, patterns = 3, torch.tensor(PATTERNS_24, dtype=torch.float64)
    emas = [random(1 if config.ema_scope == "shared" else n_masks, i).abs() + 0.2 for i, _ in SIZES]
    alphas, weights = [random(n_masks, o, i) for i, o in SIZES], [random(o, i) for i, o in SIZES]
    ups = [random(n_masks, o, i, seed=7) for i, o in SIZES]
    n_groups = sum(o * -(-i // 4) for i, o in SIZES)
    up_probs = random(6, n_masks, n_groups, seed=7) * for_probs

    def function(*given: Tensor) -> Tensor:
        layers = []
        for k, (i, o) in enumerate(SIZES):
            layer = SemiStructuredLinear24(i, o, n_masks, config=config).to(given[0].dtype)
            layer.ema_tracker.ema_activation.copy_(emas[k])
            del layer.weight, layer.hetero_alpha  # so that the given tensors can take their names
            layer.hetero_alpha, layer.weight = given[k], given[2 + k]
            layers.append(layer)
        generator = torch.Generator().manual_seed(1)
        draw = draw_masks(layers, TEMPERATURE, LOGIT_SCALE, config.noise, generator)
        by_mask = sum((m * up.to(m)).sum() for m, up in zip(draw.masks, ups, strict=True))
        return for_mask * by_mask + (draw.pattern_probs * up_probs.to(given[0])).sum() + 0 * sum(x.sum() for x in given)

    def scores(alpha: Tensor, weight: Tensor, ema: Tensor) -> Tensor:
        size = weight.abs() if config.score_weight_power else 1.0
        return torch.sigmoid(alpha) * size * (ema.unsqueeze(1) if config.score_ema_power else 1.0)

    means = [scores(a, w, e).mean(dim=(1, 2)) for a, w, e in zip(alphas, weights, emas, strict=True)]

    def distributions(alphas: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        """Pattern distributions [M, out, groups, 6] of each layer."""
        found = []
        for alpha, weight, ema, mean in zip(alphas, weights, emas, means, strict=True):
            score = LOGIT_SCALE * scores(alpha, weight, ema) / mean[:, None, None]
            padded = nn.functional.pad(score, (0, -score.shape[2] % 4), value=PADDING_SCORE)
            found.append(torch.softmax(padded.unflatten(2, (-1, 4)) @ patterns.T / TEMPERATURE, dim=-1))
        return found

    def formula(*given: Tensor) -> Tensor:
        """`td`: the distribution that the loss sees does not move the weights; `alpha`: nothing does."""
        now, fixed, kind = list(given[2:]), weights, config.score_gradient
        for_masks = distributions(list(given[:2]), fixed if kind == "alpha" else now)
        for_loss = distributions(list(given[:2]), now if kind == "all" else fixed)
        masks = [(p @ patterns).flatten(2)[..., : up.shape[2]] for p, up in zip(for_masks, ups, strict=True)]
        flat = torch.cat([p.flatten(1, 2) for p in for_loss], dim=1).permute(2, 0, 1)
        return for_mask * sum((m * up).sum() for m, up in zip(masks, ups, strict=True)) + (flat * up_probs).sum()

    return Case(function, formula, [*alphas, *weights], same_value=False)


# --- composed --------------------------------------------------------------------------------------------------


def network_case(n_networks: int, packed: bool) -> Case:
    """A whole network over three steps, from its matrices to a number."""
    k, hidden, actions, observed, steps, rows = 2, 4, 3, 5, 3, 2
    sizes = {
        "fc1": (observed, hidden),
        "rnn_input": (hidden, 3 * hidden),
        "rnn_hidden": (hidden, 3 * hidden),
        "fc2": (hidden, hidden),
        "fc3": (hidden, hidden),
        "fc4": (hidden, actions),
    }
    make = random_24 if packed else random
    matrices = [make(n_networks, o, i) for i, o in sizes.values()]
    biases = [random(1, o) for _, o in sizes.values()]
    x, first = random(k, observed, steps, rows), random(k, hidden, rows, seed=3)
    up, up_last = random(k, actions, steps, rows, seed=7), random(k, hidden, rows, seed=8)

    def function(*given: Tensor) -> Tensor:
        weights = {}
        for name, weight, bias in zip(sizes, given[:6], given[6:12], strict=True):
            weights[name] = LayerWeights(weight, bias, ops.pack(weight.detach()) if packed else None)
        unrolled = unroll(weights, *given[12:])
        like = given[0]
        return (unrolled.q_values.square() * up.to(like)).sum() + (unrolled.hidden * up_last.to(like)).sum()

    def formula(*given: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for n in range(k):
            w = {name: (m[n % len(m)], b[0]) for name, m, b in zip(sizes, given[:6], given[6:12], strict=True)}

            def linear(name: str, x: Tensor, w: dict = w) -> Tensor:
                return w[name][0] @ x + w[name][1].unsqueeze(1)

            x, h = given[12][n], given[13][n]
            for t in range(steps):
                gate = linear("rnn_input", linear("fc1", x[:, t]).clamp_min(0))
                h = cell(gate, h, *w["rnn_hidden"])
                q = linear("fc4", linear("fc3", linear("fc2", h).clamp_min(0)).clamp_min(0))
                total = total + (q.square() * up[n, :, t]).sum()
            total = total + (h * up_last[n]).sum()
        return total

    return Case(function, formula, [*matrices, *biases, x, first])
