"""What follows a run while it trains: loggers by their names, and callbacks that users write.

`metrics.jsonl` of the run folder holds the same metrics with and without them.
"""

import csv
import importlib.util
import io
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k24lab.errors import ConfigError, K24Error, RunError, told, warn
from k24lab.lab.files import atomic_write

if TYPE_CHECKING:
    from k24lab.lab.config import Config

Metrics = Mapping[str, float]


class Callback:
    """Follows a run while it trains. Derive a class and override the methods that you need; here they do nothing.

    A callback gets copies of the metrics, so it changes no number of the run. An error in `on_start` refuses the run.
    An error later is a warning: the callback is not called again, and the run goes on. A run that has finished before
    calls none of them.
    """

    def on_start(self, folder: Path, config: "Config", t_env: int) -> None:
        """Training starts in this run folder.

        After an interruption it goes on from `t_env` env steps. What was logged after these comes a second time, with
        the same numbers.
        """

    def on_log(self, t_env: int, metrics: Metrics) -> None:
        """Metrics of a learner update and of the episodes before it, after `t_env` env steps."""

    def on_test(self, t_env: int, metrics: Metrics) -> None:
        """Metrics of an evaluation of the greedy team."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """The run has finished; `summary` is what summary.json holds."""

    def close(self) -> None:
        """Training has ended in this process, whether the run has finished, was interrupted, or failed."""


class CSVLogger(Callback):
    """Writes `metrics.csv` into the run folder: a line for each log or test, and a column for each metric."""

    def on_start(self, folder: Path, config: "Config", t_env: int) -> None:
        """Keep what an earlier attempt wrote up to its last checkpoint."""
        self._path, self._columns = folder / "metrics.csv", ["t_env"]
        lines = self._read() if t_env and self._path.is_file() else []
        self._columns = list(lines[0]) if lines else self._columns
        self._rewrite([line for line in lines if int(line["t_env"]) <= t_env])

    def on_log(self, t_env: int, metrics: Metrics) -> None:
        """Append a line; a metric that is new adds a column, which is empty in the lines before."""
        new = [key for key in metrics if key not in self._columns]
        if new:
            lines = self._read()
            self._columns += new
            self._rewrite(lines)
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow({"t_env": t_env} | dict(metrics))

    on_test = on_log

    def _read(self) -> list[dict[str, str]]:
        with self._path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, lines: Sequence[Mapping[str, object]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="")
        writer.writeheader()
        writer.writerows(lines)
        with atomic_write(self._path) as file:
            file.write(text.getvalue().encode())


class TensorBoardLogger(Callback):
    """Writes event files into the folder `tensorboard` of the run."""

    def on_start(self, folder: Path, config: "Config", t_env: int) -> None:
        """Hide what an earlier attempt wrote after its last checkpoint."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=t_env + 1 if t_env else None)

    def on_log(self, t_env: int, metrics: Metrics) -> None:
        """Add a point to the curve of each metric."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, t_env)

    on_test = on_log

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()


class WandbLogger(Callback):
    """Sends metrics, settings and summary to Weights & Biases, or with WANDB_MODE=offline into the run folder.

    Project, user and server are those of W&B's own environment variables (WANDB_PROJECT, ...). The run's group and name
    are those of its folder. Curves are drawn against `t_env`.
    """

    def on_start(self, folder: Path, config: "Config", t_env: int) -> None:
        """Start a run of W&B, or go on with the one that an earlier attempt started: its id is kept in the folder."""
        import wandb

        known = folder / "wandb_id"
        if not known.is_file():
            known.write_text(secrets.token_hex(8))
        self._run: Any = wandb.init(
            id=known.read_text(),
            resume="allow",
            reinit="create_new",  # a run of the user's own, in the same process, stays as it is
            group=folder.parent.name,
            name=folder.name,
            config=asdict(config),
            dir=folder,
        )
        self._run.define_metric("*", step_metric="t_env")
        self._finished = False

    def on_log(self, t_env: int, metrics: Metrics) -> None:
        """Log the metrics with the env steps that they belong to."""
        self._run.log({"t_env": t_env} | dict(metrics))

    on_test = on_log

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Make the run's summary that of W&B's run."""
        self._run.summary.update(dict(summary))
        self._finished = True

    def close(self) -> None:
        """End the run of W&B; one that has not finished is marked as failed until it goes on."""
        self._run.finish(exit_code=0 if self._finished else 1)


LOGGERS: dict[str, type[Callback]] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger, "wandb": WandbLogger}


def build_loggers(names: Sequence[str]) -> list[Callback]:
    """The loggers of these names. Raises ConfigError: the package of one, which is also its extra, is missing."""
    for name in names:
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise ConfigError(f"the logger {name!r} needs its extra: pip install 'k24lab[{name}]'")
    return [LOGGERS[name]() for name in names]


class Callbacks:
    """The callbacks of one attempt to train a run."""

    def __init__(self, callbacks: Sequence[Callback]):
        self._given = list(callbacks)
        self._started: list[Callback] = []
        self._called: list[Callback] = []  # without those that have raised

    def start(self, folder: Path, config: "Config", t_env: int) -> None:
        """Start all of them; raises RunError if one cannot."""
        for callback in self._given:
            try:
                callback.on_start(folder, config, t_env)
            except K24Error:
                raise
            except Exception as error:
                raise RunError(f"{type(callback).__name__} could not start: {told(error)}") from error
            self._started.append(callback)
        self._called = list(self._started)

    def call(self, method: str, *given: Any) -> None:
        """Call a method of each; one that raises is named in a warning and left out from then on."""
        for callback in list(self._called):
            try:
                getattr(callback, method)(*(dict(value) if isinstance(value, Mapping) else value for value in given))
            except Exception as error:
                self._called.remove(callback)
                warn(f"{type(callback).__name__}.{method}: {told(error)}; it is not called again, the run goes on")

    def close(self) -> None:
        """Close those that were started."""
        from k24lab.envs.vector_env import close_all  # environments load torch, which settings do without

        close_all(self._started)
