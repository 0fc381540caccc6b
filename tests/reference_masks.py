"""Masks of the reference update (`reference.py`): one mask, row and group of four after another, in float64."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from k24lab.lab.config import Config
from k24lab.methods import get_method

PATTERNS = tuple(itertools.combinations(range(4), 2))  # kept entries of a group: 1100, 1010, 1001, 0110, 0101, 0011
FIRST, SECOND = torch.tensor(PATTERNS).T
MISSING_SCORE = -1e6  # of the entries that fill up the last group of a row
THRESHOLD_LAYERS = {"fc1": 1.0, "fc2": 2.0, "fc3": 4.0, "fc4": 8.0}  # Kaleidoscope's layer weights
DECAY = 2e-4  # of the weights that SR-STE drops


@dataclass
class Draw:
    """Masks [out, in] of each layer and mask, and what learns through them."""

    masks: dict[str, list[Tensor]]
    probs: list[list[Tensor]] | None  # pattern distributions [6] of each mask and group, for the diversity loss
    decay: Tensor  # 0, with the gradient that lets dropped weights decay


def progress_value(start: float, end: float, progress: float) -> float:
    """Linear between progress 0 and 1, constant outside."""
    return start if progress <= 0 else end if progress >= 1 else start + (end - start) * progress


def temperature_at(config: Config, t_env: int) -> float:
    """init to mid over the first half of the annealing, mid to minimum over the second (or straight to the minimum)."""
    if config.temperature_schedule == "constant":
        return config.temperature_init
    progress, begin, end = t_env / config.t_max, config.anneal_start, config.anneal_end
    middle = (begin + end) / 2
    if config.temperature_schedule == "linear":
        return progress_value(config.temperature_init, config.temperature_min, (progress - begin) / (end - begin))
    if progress < middle:
        return progress_value(config.temperature_init, config.temperature_mid, (progress - begin) / (middle - begin))
    return progress_value(config.temperature_mid, config.temperature_min, (progress - middle) / (end - middle))


def logit_scale_at(config: Config, t_env: int) -> float:
    """Linear from `logit_scale` to `logit_scale_final` at `t_max`, constant without the second."""
    final = config.logit_scale if config.logit_scale_final is None else config.logit_scale_final
    return progress_value(config.logit_scale, final, t_env / config.t_max)


def layer_names(tensors: dict[str, Tensor]) -> list[str]:
    """Layers with masks of each agent, in the order of the network."""
    return [name.split(".")[1] for name in tensors if name.endswith("hetero_alpha")]


def scores(config: Config, tensors: dict[str, Tensor], name: str, m: int, weight_learns: bool) -> Tensor:
    """`|W|^p EMA_m^q sigmoid(alpha_m)` of one mask, [out, in]."""
    layer = f"layers.{name}."
    score = torch.sigmoid(tensors[layer + "hetero_alpha"][m])
    p, q = config.score_weight_power, config.score_ema_power
    if q:
        ema = tensors[layer + "ema_tracker.ema_activation"].detach()
        score = score * (ema[m] if len(ema) > 1 else ema[0]) ** q
    if p:
        weight = tensors[layer + "weight"]
        score = score * (weight if weight_learns else weight.detach()).abs() ** p
    return score


def group_logits(score: Tensor, o: int, g: int, scale: float | Tensor, missing: float) -> Tensor:
    """Logits [6] of the patterns of group g in row o: the sum of the two scores that each keeps."""
    entries = score[o, 4 * g : 4 * g + 4] * scale
    entries = torch.cat([entries, score.new_full((4 - len(entries),), missing)])
    return entries[FIRST] + entries[SECOND]


def mask_logits(config: Config, tensors: dict, name: str, m: int, t_env: int, weight_learns: bool) -> list[Tensor]:
    """Logits of all groups of one mask, row after row."""
    score = scores(config, tensors, name, m, weight_learns)
    out, inputs = score.shape
    groups = [(o, g) for o in range(out) for g in range(-(-inputs // 4))]
    if config.noise == "literal":
        return [group_logits(score, o, g, 1.0, 0.0) for o, g in groups]
    scale = logit_scale_at(config, t_env) / score.detach().mean()
    return [group_logits(score, o, g, scale, MISSING_SCORE) for o, g in groups]


def assemble(values: list[Tensor], out: int, inputs: int) -> Tensor:
    """[out, in] from the values [4] of all groups."""
    per_row = -(-inputs // 4)
    return torch.stack([torch.cat(values[o * per_row : (o + 1) * per_row])[:inputs] for o in range(out)])


GROUPS = [torch.tensor([float(i in pattern) for i in range(4)], dtype=torch.float64) for pattern in PATTERNS]


def expected(probs: Tensor) -> Tensor:
    """How likely each entry [4] of a group is kept: the sum of the patterns, each times its probability."""
    return (probs.unsqueeze(1) * torch.stack(GROUPS)).sum(dim=0)


def first_best(values: Tensor) -> int:
    """Index of the largest, the first one on a tie."""
    numbers = values.tolist()
    return numbers.index(max(numbers))


def sampled(probs: Tensor, uniform: float) -> int:
    """The pattern in whose share of [0, 1] a uniform number falls."""
    total = 0.0
    for p, share in enumerate(probs.tolist()):
        total += share
        if uniform < total:
            return p
    return len(PATTERNS) - 1


def settled(config: Config, t_env: int) -> bool:
    """Whether the annealing is over and learning goes on with the argmax masks."""
    return config.after_anneal != "drawn" and t_env >= config.anneal_end * config.t_max


def drawn_masks(
    config: Config, tensors: dict[str, Tensor], t_env: int, generator: torch.Generator | None, dtype: torch.dtype
) -> Draw:
    """The masks of an update; the argmax masks without a `generator`. Random numbers come in the learner's `dtype`."""
    names, decay = layer_names(tensors), torch.zeros((), dtype=torch.float64)
    if get_method(config.method).masks == "one":
        return magnitude_masks(tensors)
    if not names:
        return Draw({}, None, decay)
    n_masks = len(tensors[f"layers.{names[0]}.hetero_alpha"])
    fixed = not get_method(config.method).learns_masks or (config.after_anneal == "frozen" and settled(config, t_env))
    noise = "none" if fixed or generator is None or settled(config, t_env) else config.noise
    temperature = temperature_at(config, t_env)
    logits = [
        [z for name in names for z in mask_logits(config, tensors, name, m, t_env, config.score_gradient != "alpha")]
        for m in range(n_masks)
    ]
    chosen, soft = choose(noise, logits, temperature, generator, dtype)
    if fixed or generator is None:
        groups = [[GROUPS[p] for p in row] for row in chosen]
        return Draw(split(groups, tensors, names), None, decay)
    groups = [
        [GROUPS[p] + expected(s) - expected(s).detach() for p, s in zip(row, softs, strict=True)]
        for row, softs in zip(chosen, soft, strict=True)
    ]
    with_weight = config.score_gradient == "all"
    probs = [
        [
            torch.softmax(z / temperature, dim=0)
            for name in names
            for z in mask_logits(config, tensors, name, m, t_env, with_weight)
        ]
        for m in range(n_masks)
    ]
    return Draw(split(groups, tensors, names), probs, decay)


def choose(
    noise: str, logits: list[list[Tensor]], temperature: float, generator: torch.Generator | None, dtype: torch.dtype
) -> tuple[list[list[int]], list[list[Tensor]]]:
    """Pattern of each mask and group, and the distribution whose expected mask gives the gradient."""
    n_masks, n_groups = len(logits), len(logits[0])
    soft = [[torch.softmax(z / temperature, dim=0) for z in row] for row in logits]
    if noise == "none":
        return [[first_best(z) for z in row] for row in logits], soft
    if noise == "annealed":
        uniform = torch.rand((n_masks, n_groups), dtype=dtype, generator=generator).double().tolist()
        return [[sampled(s, u) for s, u in zip(*pair, strict=True)] for pair in zip(soft, uniform, strict=True)], soft
    exponential = torch.empty((6, n_masks, n_groups), dtype=dtype).exponential_(generator=generator)
    gumbel = -exponential.log().double()
    noisy = [[z + gumbel[:, m, g] for g, z in enumerate(row)] for m, row in enumerate(logits)]
    soft = [[torch.softmax(z / temperature, dim=0) for z in row] for row in noisy]
    return [[first_best(z) for z in row] for row in noisy], soft


def split(groups: list[list[Tensor]], tensors: dict[str, Tensor], names: list[str]) -> dict[str, list[Tensor]]:
    """Masks of each layer, from the groups of all layers of each mask."""
    masks: dict[str, list[Tensor]] = {name: [] for name in names}
    for row in groups:
        start = 0
        for name in names:
            out, inputs = tensors[f"layers.{name}.weight"].shape
            n = out * -(-inputs // 4)
            masks[name].append(assemble(row[start : start + n], out, inputs))
            start += n
    return masks


def magnitude_masks(tensors: dict[str, Tensor]) -> Draw:
    """SR-STE: the two largest |W| of each four; the gradient ignores the mask, and dropped weights decay."""
    masks, decay = {}, torch.zeros((), dtype=torch.float64)
    for name in ("fc1", "rnn_input", "rnn_hidden", "fc2", "fc3", "fc4"):
        weight = tensors[f"layers.{name}.weight"]
        if weight.dim() == 3:
            continue  # a dense layer of the GRU
        mask = torch.zeros_like(weight)
        for o in range(weight.shape[0]):
            for start in range(0, weight.shape[1], 4):
                inside = range(start, min(start + 4, weight.shape[1]))
                for i in sorted(inside, key=lambda i: -abs(weight[o, i].item()))[:2]:
                    mask[o, i] = 1.0
        masks[name] = [mask]
        decay = decay + 0.5 * DECAY * ((1 - mask) * weight * weight).sum()
    return Draw(masks, None, decay)


def effective(tensors: dict[str, Tensor], name: str, k: int, masks: dict[str, list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Matrix and bias with which network k computes this layer."""
    weight, bias = before_gains(tensors, name, k, masks)
    if f"gains.{name}.gain" in tensors:
        gain, own = tensors[f"gains.{name}.gain"][k], tensors[f"gains.{name}.bias"][k]
        weight = torch.stack([(1 + gain[o]) * weight[o] for o in range(len(weight))])
        bias = bias + own
    return weight, bias


def before_gains(
    tensors: dict[str, Tensor], name: str, k: int, masks: dict[str, list[Tensor]]
) -> tuple[Tensor, Tensor]:
    """The same without what an agent multiplies a neuron with and adds to it."""
    if f"layers.{name}.embedding" in tensors:
        return generated(tensors, f"layers.{name}", k)
    weight, bias = tensors[f"layers.{name}.weight"], tensors[f"layers.{name}.bias"]
    if f"layers.{name}.ids" in tensors:
        return torch.cat([weight[0], tensors[f"layers.{name}.ids"][0]], dim=1), bias[0]
    if f"layers.{name}.hetero_alpha" in tensors:
        return weight * masks[name][k], bias
    if f"layers.{name}.threshold" in tensors:
        size = torch.relu(weight.abs() - torch.sigmoid(tensors[f"layers.{name}.threshold"][k]))
        return weight.sign() * size, bias
    if weight.dim() == 2:  # one magnitude mask for all
        return (weight * masks[name][0]).detach() + weight - weight.detach(), bias
    weight, bias = weight[k if len(weight) > 1 else 0], bias[k if len(bias) > 1 else 0]
    if f"layers.{name}.mask" in tensors:  # a fixed mask of each agent
        weight = weight * tensors[f"layers.{name}.mask"][k]
    return weight, bias


def generated(tensors: dict[str, Tensor], layer: str, k: int) -> tuple[Tensor, Tensor]:
    """What a hypernetwork makes of the embedding of agent k."""
    embedding = tensors["layers.fc2.embedding"][k]  # the first of the layers that share it

    def mlp(hidden: str, head: str) -> Tensor:
        units = torch.relu(tensors[f"{layer}.{hidden}.weight"] @ embedding + tensors[f"{layer}.{hidden}.bias"])
        return tensors[f"{layer}.{head}.weight"] @ units + tensors[f"{layer}.{head}.bias"]

    bias = mlp("for_bias", "bias_head")
    return mlp("for_weight", "weight_head").reshape(len(bias), -1), bias


def diversity_loss(probs: list[list[Tensor]]) -> Tensor:
    """Mean over groups and ordered pairs of different masks of the product of their pattern distributions."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for a in range(len(probs)):
        for b in range(len(probs)):
            for p, q in zip(probs[a], probs[b], strict=True):
                if a != b:
                    total, count = total + (p * q).sum(), count + 1
    return total / max(count, 1)


def kaleidoscope_bonus(tensors: dict[str, Tensor], coef: float = 1.0) -> tuple[Tensor, Tensor]:
    """Minus the weighted mean distance of two masks, and a term with the gradient of `coef` times it.

    Whether a weight is kept is a step, whose gradient is defined: that which arrives, squashed by tanh.
    """
    kept, limits, size, total, n_weights = {}, {}, {}, torch.zeros((), dtype=torch.float64), 0
    for name in THRESHOLD_LAYERS:
        size[name] = tensors[f"layers.{name}.weight"].detach().abs()
        limits[name] = torch.sigmoid(tensors[f"layers.{name}.threshold"])
        kept[name] = (size[name] > limits[name]).double().detach().requires_grad_()
        n_weights += size[name].numel()
    n_masks = len(limits["fc1"])
    for name, layer_weight in THRESHOLD_LAYERS.items():
        for a in range(n_masks):
            for b in range(n_masks):
                if a != b:
                    distance = (kept[name][a] * size[name] - kept[name][b] * size[name]).abs().sum()
                    total = total + layer_weight * distance
    bonus = -total / (n_masks * (n_masks - 1) * n_weights)
    arriving = torch.autograd.grad(coef * bonus, list(kept.values()))
    surrogate = sum((torch.tanh(gradient) * -limits[name]).sum() for name, gradient in zip(kept, arriving, strict=True))
    return bonus.detach(), surrogate
