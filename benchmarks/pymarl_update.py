"""Updates of learners of pymarl's family, in a checkout: epymarl and the original Kaleidoscope."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

from benchmarks.worker import Meter

EPISODES = 32


def update(meter: Meter, checkout: str, source: str, config: str, shape: tuple[int, int, int, int, int]) -> None:
    """One update after the other of the checkout's own learner, controller, agent, mixer and batch.

    Args:
        meter: counts updates.
        checkout: folder of the repository.
        source: its folder with the program.
        config: its configuration of the algorithm; observations have neither ids nor last actions.
        shape: agents, observation, actions, hidden size, episode length.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = Path(checkout) / source
    sys.path.insert(0, str(folder))
    n, o, a, h, t = shape
    args = yaml.safe_load((folder / "config/default.yaml").read_text())
    args |= yaml.safe_load((folder / f"config/algs/{config}.yaml").read_text())
    args |= {"n_agents": n, "n_actions": a, "hidden_dim": h, "state_shape": n * o, "use_rnn": True, "use_cuda": False}
    args |= {"obs_agent_id": False, "obs_last_action": False, "device": "cpu"}
    settings = SimpleNamespace(**args)
    batch = _batch(settings, o, t)
    controller = importlib.import_module("controllers").REGISTRY[settings.mac](batch.scheme, batch.groups, settings)
    logger = SimpleNamespace(log_stat=lambda *_: None)
    learner = importlib.import_module("learners").REGISTRY[settings.learner](controller, batch.scheme, logger, settings)
    while True:
        learner.train(batch, 0, 0)
        meter()


def _batch(args: SimpleNamespace, obs: int, steps: int) -> Any:
    """Full-length episodes of random numbers in the checkout's own batch."""
    transforms = importlib.import_module("components.transforms")
    scheme = {
        "state": {"vshape": args.state_shape},
        "obs": {"vshape": obs, "group": "agents"},
        "actions": {"vshape": (1,), "group": "agents", "dtype": torch.long},
        "avail_actions": {"vshape": (args.n_actions,), "group": "agents", "dtype": torch.int},
        "reward": {"vshape": (1,)},
        "terminated": {"vshape": (1,), "dtype": torch.uint8},
    }
    onehot = {"actions": ("actions_onehot", [transforms.OneHot(out_dim=args.n_actions)])}
    batches = importlib.import_module("components.episode_buffer")
    batch = batches.EpisodeBatch(scheme, {"agents": args.n_agents}, EPISODES, steps + 1, preprocess=onehot)
    each = (EPISODES, steps + 1)
    values = {
        "state": torch.randn(*each, args.state_shape),
        "obs": torch.randn(*each, args.n_agents, obs),
        "actions": torch.randint(args.n_actions, (*each, args.n_agents, 1)),
        "avail_actions": torch.ones(*each, args.n_agents, args.n_actions, dtype=torch.int),
        "reward": torch.randn(*each, 1),
        "terminated": torch.zeros(*each, 1, dtype=torch.uint8),
    }
    batch.update(values)
    return batch
