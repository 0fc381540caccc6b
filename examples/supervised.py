"""One network, three functions: the masked layer in supervised learning, with nothing of reinforcement learning.

The network gets the same eight inputs for three different functions, and nothing tells it which one is asked for. A
network that is the same for all three can at best learn their mean. With K-2:4 each function has a 2:4 mask of its own
over the shared weights. The first two rows show why the temperature of the masks has to fall during training, which
`k24lab.anneal` does. These are the errors of three seeds, of argmax masks on new inputs (1: no better than a constant):

    python examples/supervised.py --seeds 0 1 2

    annealed       error 0.106   seeds 0.079  0.130  0.108
    not annealed   error 0.195   seeds 0.160  0.245  0.179
    random masks   error 0.022   seeds 0.031  0.016  0.020
    shared dense   error 0.697   seeds 0.705  0.695  0.690

Fixed random masks do best here: any three masks that differ are enough for three functions, and the weights can adapt
to them from the first step on.
"""

import statistics
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float
from torch import Tensor, nn

import k24lab

FUNCTIONS = (
    lambda x: torch.sin(3 * x[:, 0]) + x[:, 1],
    lambda x: 2 * x[:, 2] * x[:, 3],
    lambda x: x[:, 4].abs() - x[:, 5].abs() + x[:, 6],
)
VARIANTS = ("annealed", "not annealed", "random masks", "shared dense")
# Scores without weights and activations are random until they are trained, and so are their argmax masks.
RANDOM_MASKS = k24lab.MaskConfig(score_weight_power=0.0, score_ema_power=0.0)


@dataclass(frozen=True)
class Settings:
    """Settings of all runs; learned masks have the defaults of `k24lab.MaskConfig`."""

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 1500
    batch_size: int = 256
    hidden_dim: int = 16
    lr: float = 1e-3


def sample(n: int) -> tuple[Float[Tensor, "M n 8"], Float[Tensor, "M n"]]:
    """The same inputs for each function, and its values."""
    x = torch.rand(n, 8) * 2 - 1
    return x.expand(len(FUNCTIONS), -1, -1), torch.stack([function(x) for function in FUNCTIONS])


def fit(variant: str, seed: int, s: Settings) -> float:
    """Train one network; returns the mean squared error over the variance of the functions (1: a constant's)."""
    torch.manual_seed(seed)
    h = s.hidden_dim
    config = RANDOM_MASKS if variant == "random masks" else None
    model: nn.Module = nn.Sequential(nn.Linear(8, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, 1))
    if variant != "shared dense":
        model = k24lab.convert(model, n_masks=len(FUNCTIONS), config=config)
    if variant == "random masks":
        k24lab.freeze_masks(model)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=s.lr)
    for step in range(s.steps):
        if variant == "annealed":
            k24lab.anneal(model, step / s.steps)
        x, y = sample(s.batch_size)
        loss = F.mse_loss(model(x).squeeze(-1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()  # masks are the argmax masks from here on
    with torch.no_grad():
        x, y = sample(4096)
        return ((model(x).squeeze(-1) - y).square().mean(dim=1) / y.var(dim=1)).mean().item()


def main(s: Settings) -> dict[str, list[float]]:
    """Print the errors of all variants and return them."""
    torch.set_num_threads(1)  # a network as small as this one only waits for more
    errors = {}
    for variant in VARIANTS:
        errors[variant] = [fit(variant, seed, s) for seed in s.seeds]
        each = "  ".join(f"{error:.3f}" for error in errors[variant])
        print(f"{variant:14s} error {statistics.mean(errors[variant]):.3f}   seeds {each}", flush=True)
    return errors


if __name__ == "__main__":
    main(tyro.cli(Settings))
