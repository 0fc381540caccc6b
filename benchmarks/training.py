"""Whole training loops of the package: environments, acting, replay, updates and logging, but no tests."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.worker import Meter
from k24lab import build_config, train
from k24lab.lab.callbacks import Callback

NEVER = 10**9
RUN = {"t_max": NEVER, "test_interval": NEVER, "snapshot_interval": NEVER, "checkpoint_interval": NEVER}


class Steps(Callback):
    """Counts the env steps of a run whenever it logs."""

    def __init__(self, meter: Meter):
        self.meter, self.t_env = meter, 0

    def on_log(self, t_env: int, metrics: Mapping[str, float]) -> None:
        """Count what was done since the last log."""
        self.meter(t_env - self.t_env)
        self.t_env = t_env


def run(meter: Meter, **settings: object) -> None:
    """A run with these settings, which logs as often as any other."""
    train(build_config({**RUN, **settings}), folder=Path("run"), progress=False, callbacks=[Steps(meter)])
