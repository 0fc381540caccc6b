"""k24lab: per-agent 2:4 masks over shared weights for cooperative multi-agent reinforcement learning.

All agents share one network, and each sees it through a mask of its own that keeps two of every four neighbouring
weights (K-2:4). Everything below is an attribute of `k24lab`, and each has an example: `help(k24lab.anneal)`.

The layer, in a network and a training loop of your own:

    >>> import torch, k24lab
    >>> from torch import nn
    >>> team = k24lab.convert(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)), n_masks=3)
    >>> optimizer = torch.optim.Adam(team.parameters(), lr=1e-3)
    >>> for step in range(10):
    ...     k24lab.anneal(team, step / 10)  # masks are drawn with less and less noise
    ...     with k24lab.drawn_masks(team):  # one draw of masks for the whole update
    ...         loss = team(torch.randn(3, 16, 8)).square().mean() + 0.1 * k24lab.diversity_loss(team)
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    >>> one = k24lab.extract(team.eval(), mask=0)  # the first agent's network, of nn.Linear
    >>> one(torch.randn(16, 8)).shape
    torch.Size([16, 2])
    >>> k24lab.weights_kept(team).share, k24lab.PATTERNS_24[0]  # the first of the six 2:4 patterns
    (0.5, (1, 1, 0, 0))

- Layers: `SemiStructuredLinear24`, `MaskedGRU`, `MaskedGRUCell`, `MaskConfig` (their settings), `PATTERNS_24`.
- Any module: `convert`, `masked_layers`, `anneal`, `drawn_masks`, `diversity_loss`, `weights_kept`, `freeze_masks`,
  `extract`.
- Runs with the package's own learner: `build_config` and `Config`, `train`, `find_runs`, `load_metrics`, `make_env`.
- Acting with a trained team: `freeze_run`, `save_team`, `load_team`, `Actor`.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # that of `typing`, which is not imported: importing k24lab loads nothing
if TYPE_CHECKING:
    from k24lab.analysis.load import load_metrics
    from k24lab.core.config import MaskConfig
    from k24lab.core.convert import convert, extract
    from k24lab.core.layers import SemiStructuredLinear24
    from k24lab.core.modules import anneal, diversity_loss, drawn_masks, freeze_masks, masked_layers, weights_kept
    from k24lab.core.pattern_table import PATTERNS_24
    from k24lab.core.recurrent import MaskedGRU, MaskedGRUCell
    from k24lab.envs.registry import make_env
    from k24lab.inference.actor import Actor
    from k24lab.inference.freeze import freeze_run, load_team, save_team
    from k24lab.lab.config import Config, build_config
    from k24lab.lab.find_runs import find_runs
    from k24lab.lab.train import train

__all__ = [
    "PATTERNS_24",
    "Actor",
    "Config",
    "MaskConfig",
    "MaskedGRU",
    "MaskedGRUCell",
    "SemiStructuredLinear24",
    "anneal",
    "build_config",
    "convert",
    "diversity_loss",
    "drawn_masks",
    "extract",
    "find_runs",
    "freeze_masks",
    "freeze_run",
    "load_metrics",
    "load_team",
    "make_env",
    "masked_layers",
    "save_team",
    "train",
    "weights_kept",
]

if not TYPE_CHECKING:
    _MODULES = {
        "analysis.load": "load_metrics",
        "core.config": "MaskConfig",
        "core.convert": "convert extract",
        "core.layers": "SemiStructuredLinear24",
        "core.modules": "anneal diversity_loss drawn_masks freeze_masks masked_layers weights_kept",
        "core.pattern_table": "PATTERNS_24",
        "core.recurrent": "MaskedGRU MaskedGRUCell",
        "envs.registry": "make_env",
        "inference.actor": "Actor",
        "inference.freeze": "freeze_run load_team save_team",
        "lab.config": "Config build_config",
        "lab.find_runs": "find_runs",
        "lab.train": "train",
    }
    _MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

    def __getattr__(name):
        """Import a public name when it is first used."""
        import importlib

        if name in _MODULE_OF:
            value = getattr(importlib.import_module(f"k24lab.{_MODULE_OF[name]}"), name)
            globals()[name] = value
            return value
        if name.startswith("_"):
            raise AttributeError(f"module 'k24lab' has no attribute {name!r}")
        from k24lab.errors import unknown

        raise AttributeError(f"module 'k24lab': {unknown('name', name, __all__)}", name=name, obj=None)

    def __dir__():
        return sorted({*globals(), *__all__})
