"""K-2:4 in a stub of a checkout of epymarl or pymarl2 (`fake_epymarl`), as its run loop would set it up."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_epymarl
import pytest
import torch
import yaml
from fake_epymarl import Logger, write_checkout

from k24lab.integrations.epymarl.configs import config_files
from k24lab.integrations.epymarl.install import integrate

THEIRS = ("modules", "controllers", "learners", "components")


@pytest.fixture
def running(tmp_path, monkeypatch):
    """Import from the src folder of a checkout with the line in it, as its `python src/main.py` would."""

    def enter(flavour: str = "epymarl") -> Path:
        folder = write_checkout(tmp_path / flavour, flavour)
        integrate(folder)
        monkeypatch.syspath_prepend(str(folder / "src"))
        _forget()
        importlib.import_module("learners")
        return folder

    yield enter
    _forget()


def _forget() -> None:
    """Drop the checkout's modules, which have such common names."""
    for name in [name for name in sys.modules if name.partition(".")[0] in THEIRS]:
        del sys.modules[name]


def make_args(flavour: str = "epymarl", name: str = "k24_vdn.yaml", k24_args=None, **changes) -> SimpleNamespace:
    """What their run loop makes of our configuration: their defaults, our file, the command line."""
    defaults = yaml.safe_load(fake_epymarl.FLAVOURS[flavour]["src/config/default.yaml"])
    ours = yaml.safe_load(config_files(flavour)[name])
    found = {"device": "cpu", "n_agents": 2, "n_actions": 3, "state_shape": 4}
    args = SimpleNamespace(**defaults | ours | found | {"batch_size": 4, "buffer_size": 32, "t_max": 1000} | changes)
    args.k24_args = ours["k24_args"] | (k24_args or {})
    return args


def build(args: SimpleNamespace):
    """The learner, as their run loop builds it; its controller is `learner.mac`."""
    torch.manual_seed(0)
    mac = importlib.import_module("controllers").REGISTRY[args.mac](fake_epymarl.SCHEME, {"agents": 2}, args)
    return importlib.import_module("learners").REGISTRY[args.learner](mac, fake_epymarl.SCHEME, Logger(), args)
