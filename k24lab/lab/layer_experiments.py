"""Small experiments on the masked layer alone, for the notebook 01_masks."""

import itertools

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from k24lab.core import schedules
from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.masks import Noise, draw_masks
from k24lab.lab.config import Config, build_config
from k24lab.methods import METHODS, get_method

LR = 1e-3  # of the regression
TARGETS = {  # three different functions of the same eight inputs
    "sine": lambda x: torch.sin(3 * x[:, 0]) + x[:, 1],
    "product": lambda x: x[:, 2] * x[:, 3] * 2,
    "absolute": lambda x: x[:, 4].abs() - x[:, 5].abs() + x[:, 6],
}


def redraw_share(layer: SemiStructuredLinear24, temperature: float, noise: Noise, n_draws: int = 20) -> float:
    """Share of the groups whose pattern changes between two draws; 5/6 is pure chance."""
    draws = [draw_masks([layer], temperature, layer.config.logit_scale, noise).pattern_index for _ in range(n_draws)]
    changed = [(a != b).float().mean().item() for a, b in itertools.pairwise(draws)]
    return sum(changed) / len(changed)


def redraw_table(temperatures: list[float], size: int, hetero_init_scale: float, seed: int = 0) -> pd.DataFrame:
    """`redraw_share` of a size x size layer at every temperature, for the literal and the annealed draw."""
    rows = []
    for noise in ("literal", "annealed"):
        torch.manual_seed(seed)
        config = build_config({"noise": noise, "hetero_init_scale": hetero_init_scale})
        layer = SemiStructuredLinear24(size, size, 1, config=config)
        layer.ema_tracker.update(torch.rand(1, size))
        for t in temperatures:
            rows.append({"noise": noise, "temperature": t, "redraw_share": redraw_share(layer, t, noise)})
    return pd.DataFrame(rows)


def _network(config: Config | None, hidden_dim: int) -> nn.Sequential:
    """8 -> hidden -> hidden -> 1, ReLU; with masks for each function, or dense and shared."""
    layers: list[nn.Module] = []
    for i, o in ((8, hidden_dim), (hidden_dim, hidden_dim), (hidden_dim, 1)):
        if config is None:
            layers.append(nn.Linear(i, o))
        else:
            learns = get_method(config.method).learns_masks
            layers.append(SemiStructuredLinear24(i, o, len(TARGETS), config=config, learn_masks=learns))
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def three_functions(method: str, seed: int, steps: int = 1000, hidden_dim: int = 64, batch: int = 256) -> float:
    """Fit three functions with one set of weights; no input says which function is asked for.

    Args:
        method: `dense` (one shared network: at best the mean of the three), or a masked method's name; a
            suffix `:none` or `:literal` changes its noise.
        steps: gradient steps.

    Returns:
        Mean squared error over the variance of the targets, averaged over the functions, with argmax masks, or with
        drawn masks where the method acts with those (1: no better than a constant).
    """
    torch.manual_seed(seed)
    name, _, noise = method.partition(":")
    config = None if name == "dense" else build_config({"method": name} | ({"noise": noise} if noise else {}))
    network = _network(config, hidden_dim)
    masked = [layer for layer in network if isinstance(layer, SemiStructuredLinear24)]
    factor = config.alpha_lr_factor if config else 1.0  # hetero_alpha learns so many times faster
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(
        [{"params": [p], "lr": LR * (factor if name.endswith("hetero_alpha") else 1.0)} for name, p in named]
    )
    for k in range(steps):
        for layer in masked:
            layer.temperature = schedules.mask_temperature(layer.config, k / steps)
        x, y = _sample(batch)
        loss = F.mse_loss(network(x).squeeze(-1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if config is None or config.acting_masks == "argmax":
        network.eval()
    with torch.no_grad():
        x, y = _sample(4096)
        return (((network(x).squeeze(-1) - y) ** 2).mean(dim=1) / y.var(dim=1)).mean().item()


def three_functions_table(methods: list[str], seeds: list[int], steps: int = 1000) -> pd.DataFrame:
    """`three_functions` for every method and seed; `label` is the method's name in figures."""
    rows = [{"method": m, "seed": s, "error": three_functions(m, s, steps)} for m in methods for s in seeds]
    return pd.DataFrame(rows).assign(label=lambda table: table["method"].map(_label))


def _label(method: str) -> str:
    name, _, noise = method.partition(":")
    label = "one dense network" if name == "dense" else METHODS[name].label
    return f"{label} (noise {noise})" if noise else label


def _sample(batch: int) -> tuple[Tensor, Tensor]:
    """The same inputs for all functions [M, batch, 8], and each function's own targets [M, batch]."""
    x = torch.rand(batch, 8) * 2 - 1
    return x.expand(len(TARGETS), -1, -1), torch.stack([target(x) for target in TARGETS.values()])
