"""Runs of a second: trained to their end or stopped midway, and what they leave."""

import itertools
import json

import pytest
import torch
from conftest import TINY

from k24lab.lab.config import build_config
from k24lab.lab.runs import RunFolder
from k24lab.lab.train import Trainer, train

# As many steps in shorter episodes: 200 an iteration, 1600 in all.
SHORT = TINY | {"task": "rolenav:episode_limit=10", "n_envs": 20}


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.fixture
def tiny_config():
    """Make a tiny configuration with short episodes."""
    return lambda **changes: build_config(SHORT | changes)


def metrics(path):
    return (path / "metrics.jsonl").read_bytes()


def rows(path):
    return [json.loads(line) for line in metrics(path).splitlines()]


def run_to_end(config, path):
    """Train in `path`; returns the run's whole state at its end, replay included, times left out."""
    trainer = Trainer(config, RunFolder(path, config))
    trainer.run_to_end(progress=False)
    state = trainer.state_dict()
    trainer.close()
    return {key: value for key, value in state.items() if key != "seconds"}


def interrupt(monkeypatch, config, path, after: int):
    """Train in `path` until the `after`-th iteration has ended."""
    count, original = itertools.count(1), Trainer._iteration

    def iteration(self):
        original(self)
        if next(count) == after:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_iteration", iteration)
        with pytest.raises(Interrupted):
            train(config, folder=path, progress=False)


def assert_same(a, b, where="state"):
    if torch.is_tensor(a):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{k}]")
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A finished k24 run that no test changes: its configuration, folder and state."""
    torch.set_num_threads(1)
    config, path = build_config(SHORT), tmp_path_factory.mktemp("unbroken") / "run"
    return config, path, run_to_end(config, path)
