"""Training a run from its configuration to its DONE file; the command line and the notebook both come here."""

import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from k24lab.core import schedules
from k24lab.envs.base import VecEnv
from k24lab.envs.registry import make_env
from k24lab.envs.vector_env import close_all
from k24lab.errors import ConfigError, RunError
from k24lab.lab import provenance
from k24lab.lab.callbacks import Callback, Callbacks, build_loggers
from k24lab.lab.checks import check_usable
from k24lab.lab.collector import Collector, play_rollout
from k24lab.lab.config import Config
from k24lab.lab.runs import RunFolder, canonical, run_folder
from k24lab.lab.unused_settings import log_idle_changes
from k24lab.marl.learner import build_learner
from k24lab.marl.policy import behaviour, pattern_arrays
from k24lab.marl.replay import EpisodeBatch, ReplayBuffer, concatenate
from k24lab.marl.seeding import Stream, derive_seed
from k24lab.ops.library import in_use, keep_memory, threads, threads_used

BEHAVIOUR_EPISODES = 8  # whose observations the agents' policies are compared on


def train(
    config: Config,
    name: str = "default",
    folder: Path | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train one run, or go on with it where its last checkpoint left it; a finished run is left as it is.

    Args:
        config: the run.
        name: group of runs, a folder under `runs/`.
        folder: run folder; by default it follows from `name` and `config`, and settings of no effect are logged.
        progress: show a progress bar.
        callbacks: what follows the run, besides the loggers of the setting `loggers`.

    Raises:
        ConfigError: a task, device or logger that cannot be used, or a `config` that is no `Config`.
        RunError: the folder holds another run or damaged checkpoints only, or another process trains it.

    Examples:
        >>> import k24lab
        >>> config = k24lab.build_config(task="rolenav", t_max=400, test_episodes=10)  # too short to learn
        >>> run = k24lab.train(config, name="doc", progress=False)
        >>> (run / "metrics.jsonl").exists(), run.parent.name
        (True, 'doc')
    """
    if not isinstance(config, Config):
        kind = type(config).__name__
        raise ConfigError(f"config = {config!r} is a {kind}, not a Config: make one with build_config(task=...)")
    if folder is None:
        log_idle_changes(config)
        config = canonical(config)
        folder = run_folder(config, name)
    followed = Callbacks(callbacks)
    if not (folder / "DONE").exists():
        check_usable(config)  # an invalid setting creates no run folder
        followed = Callbacks([*build_loggers(config.logger_names), *callbacks])
    run = RunFolder(folder, config)
    if not run.done:
        with run.attempt():
            if not run.done:  # another process may have finished it just now
                _train(config, run, progress, followed)
    return run.path


def _train(config: Config, run: RunFolder, progress: bool, callbacks: Callbacks) -> None:
    keep_memory()
    on_gpu = [] if config.device == "cpu" else [config.device]
    # What a notebook does after a run has the threads and the global generator that it had before.
    with threads_used(config.n_threads), torch.random.fork_rng(on_gpu):
        trainer = Trainer(config, run, callbacks)
        gc.freeze()  # the modules of torch are a million objects, which the collector need not visit again and again
        try:
            trainer.run_to_end(progress)
        finally:
            gc.unfreeze()
            trainer.close()


class Trainer:
    """Everything of a run that changes while it trains."""

    def __init__(self, config: Config, run: RunFolder, callbacks: Callbacks | None = None):
        self.config, self.run, self.callbacks = config, run, callbacks or Callbacks(())
        self.env = self._make_env(config.test_episodes if config.pipeline else config.n_envs)
        shared = config.pipeline or self.env.spec.costly
        self.test_env = self.env if shared else self._make_env(config.test_episodes)
        torch.manual_seed(derive_seed(config.seed, Stream.NETWORK))
        self.learner = build_learner(config, self.env.spec)
        self.with_state = config.mixer == "qmix"
        self.replay = ReplayBuffer(self.env.spec, config.buffer_size, self.with_state, config.device)
        self.explore = torch.Generator(config.device).manual_seed(derive_seed(config.seed, Stream.EXPLORATION))
        self.sampling = torch.Generator().manual_seed(derive_seed(config.seed, Stream.REPLAY))
        self.ahead: dict[str, Tensor] | None = None  # weights that the next episodes are being collected with
        self.t_env = self.n_rollouts = 0
        self.next = {"log": 0, "test": 0, "snapshot": 0, "checkpoint": config.checkpoint_interval}
        self.recent: dict[str, float] = {}  # latest value of every metric
        self.seconds = 0.0  # of all attempts together
        state = run.load_checkpoint()
        if state:
            self.load_state_dict(state)
        self.metrics_file = run.open_metrics(state["metrics_size"] if state else 0)
        self.kernels = in_use(next(self.learner.agent.parameters()))
        provenance.record(run.path, config, self.t_env, self.kernels, max(threads(), torch.get_num_threads()))
        # Last, since nobody would end its process if something before failed. It has the environments of training.
        self.collector = Collector(config) if config.pipeline else None

    def _make_env(self, n_envs: int) -> VecEnv:
        return make_env(self.config.task, n_envs, self.config.n_workers, self.config.device)

    def run_to_end(self, progress: bool = True) -> None:
        """Train until t_max, then write summary, policy and DONE."""
        self.callbacks.start(self.run.path, self.config, self.t_env)
        config, started, before = self.config, time.perf_counter(), self.seconds
        bar = tqdm(
            total=config.t_max,
            initial=self.t_env,
            unit="step",
            unit_scale=True,
            disable=not progress,
            desc=f"{config.method}, {config.task}, seed {config.seed}",
            mininterval=1.0,
            ncols=100,
            file=sys.stdout if "ipykernel" in sys.modules else None,  # JupyterLab shows stderr as an error
        )
        with bar:
            if self.t_env == 0:
                self._evaluate_and_store()  # the untrained network is the first point of every curve
            self._collect_ahead(self.ahead)
            while self.t_env < config.t_max:
                self._iteration()
                self.seconds = before + time.perf_counter() - started
                bar.set_postfix(self._postfix(), refresh=False)
                bar.update(min(self.t_env, config.t_max) - bar.n)
        if self.learner.n_updates == 0:
            raise RunError(
                f"no update in {self.t_env} env steps: the buffer holds {self.replay.size} episodes, fewer than "
                f"batch_size = {config.batch_size}; a larger t_max or a smaller batch_size is needed"
            )
        self._finish()

    def _iteration(self) -> None:
        """Collect n_envs episodes, learn from the buffer, and do whatever is due."""
        batch = self._next_batch()
        self.replay.add(batch)
        self.t_env += batch.n_steps
        self.n_rollouts += 1
        self._collect_ahead()
        self.recent["return_mean"] = batch.returns.mean().item()
        if self.replay.size >= self.config.batch_size:
            log = self._due("log", self.config.log_interval)
            for k in range(self.config.updates_per_rollout):
                last = k == self.config.updates_per_rollout - 1
                sample = self.replay.sample(self.config.batch_size, self.sampling)
                metrics = self.learner.update(sample, self.t_env, log=log and last)
            if log:
                self._log("on_log", metrics | {"epsilon": self._epsilon()} | self._outcome(batch))
        self._evaluate_and_store()
        if self._due("checkpoint", self.config.checkpoint_interval) and self.t_env < self.config.t_max:
            self._save_checkpoint()

    def _next_batch(self) -> EpisodeBatch:
        """Episodes of training: collected now, or those that `_collect_ahead` asked for."""
        if self.collector is None:
            return self._collect(self.env, self._epsilon(), Stream.TRAIN_EPISODES, self.n_rollouts)
        batch, explored = self.collector.receive()
        self.explore.set_state(explored)
        return batch

    def _collect_ahead(self, weights: dict[str, Tensor] | None = None) -> None:
        """With `pipeline`, let the next episodes be collected during the updates, with the weights of now or these."""
        if self.collector is None or self.t_env >= self.config.t_max:
            return
        self.ahead = weights or {name: value.clone() for name, value in self.learner.agent.state_dict().items()}
        rollout = (self.t_env, self._epsilon(), Stream.TRAIN_EPISODES, self.n_rollouts)
        self.collector.ask(self.ahead, self.explore.get_state(), rollout)

    def _collect(self, env: VecEnv, epsilon: float, stream: Stream, counter: int) -> EpisodeBatch:
        return play_rollout(self.learner, env, self.explore, (self.t_env, epsilon, stream, counter))

    def _epsilon(self) -> float:
        c = self.config
        return schedules.linear(c.epsilon_start, c.epsilon_finish, self.t_env / max(c.epsilon_anneal_steps, 1))

    def _due(self, what: str, interval: int) -> bool:
        """Whether an interval has been passed since the last time, or the run is at its end."""
        if self.t_env < self.next[what] and self.t_env < self.config.t_max:
            return False
        self.next[what] = self.t_env - self.t_env % interval + interval
        return True

    def _evaluate_and_store(self) -> None:
        """Greedy evaluation and a snapshot of the masks, each when due."""
        if self._due("test", self.config.test_interval):
            self._log("on_test", self._outcome(self._test_batch(), "test_"))
        if self.learner.masked_layers and self._due("snapshot", self.config.snapshot_interval):
            self.run.save_arrays(f"patterns/{self.t_env:010d}.npz", pattern_arrays(self.learner, self.t_env))

    def _test_batch(self) -> EpisodeBatch:
        """Greedy episodes, the same ones at every evaluation, so that a curve shows learning and not luck."""
        n_batches = -(-self.config.test_episodes // self.test_env.spec.n_envs)
        return concatenate([self._collect(self.test_env, 0.0, Stream.TEST_EPISODES, k) for k in range(n_batches)])

    def _outcome(self, batch: EpisodeBatch, prefix: str = "") -> dict[str, float]:
        won = {f"{prefix}battle_won_mean": batch.won.float().mean().item()} if self.env.spec.has_win else {}
        return {f"{prefix}return_mean": batch.returns.mean().item()} | won

    def _log(self, method: str, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl, and call this method of the callbacks."""
        self.recent |= metrics
        c = self.config
        row = {"t_env": self.t_env, "update": self.learner.n_updates, "episode": self.n_rollouts * c.n_envs} | metrics
        self.metrics_file.write((json.dumps(row) + "\n").encode())
        self.metrics_file.flush()
        self.callbacks.call(method, self.t_env, metrics)

    def _postfix(self) -> dict[str, str]:
        """What the bar shows besides steps/s and ETA."""
        shown = {"return": "return_mean", "test": "test_return_mean", "τ": "temperature"}
        return {label: f"{self.recent[key]:.2f}" for label, key in shown.items() if key in self.recent}

    def _finish(self) -> None:
        batch = self._test_batch()
        self.run.save_arrays("policy.npz", behaviour(self.learner, self.t_env, batch, BEHAVIOUR_EPISODES))
        self._save_checkpoint(final=True)
        returns = batch.returns
        summary: dict[str, Any] = {
            "t_env": self.t_env,
            "updates": self.learner.n_updates,
            "episodes": self.n_rollouts * self.config.n_envs,
            "test_return_std": returns.std().item() if len(returns) > 1 else 0.0,
            "seconds": round(self.seconds, 2),
            "kernels": self.kernels,
            "env_steps_per_s": round(self.t_env / max(self.seconds, 1e-9), 1),
        }
        names = self.env.spec.unit_type_names
        summary |= ({"unit_type_names": names} if names else {}) | self.recent
        self.run.finish(summary)
        self.callbacks.call("on_end", summary)

    def _save_checkpoint(self, final: bool = False) -> None:
        self.metrics_file.flush()
        self.run.save_checkpoint(self.state_dict(with_replay=not final))

    def state_dict(self, with_replay: bool = True) -> dict[str, Any]:
        """All that the rest of the run depends on (a finished run needs no replay buffer)."""
        return {
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict() if with_replay else None,
            "explore": self.explore.get_state(),
            "sampling": self.sampling.get_state(),
            "t_env": self.t_env,
            "n_rollouts": self.n_rollouts,
            "next": dict(self.next),
            "recent": dict(self.recent),
            "seconds": self.seconds,
            "metrics_size": self.metrics_file.tell(),
        } | ({"ahead": self.ahead} if self.collector else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.learner.load_state_dict(state["learner"])
        if state["replay"] is not None:
            self.replay.load_state_dict(state["replay"])
        self.explore.set_state(state["explore"])
        self.sampling.set_state(state["sampling"])
        self.t_env, self.n_rollouts, self.seconds = state["t_env"], state["n_rollouts"], state["seconds"]
        self.next, self.recent = state["next"], state["recent"]
        self.ahead = state.get("ahead")

    def close(self) -> None:
        """Release environments and files; what cannot be released is named in a warning, whatever the run's outcome."""
        held: list[Any] = [self.metrics_file, self.env, self.callbacks]
        held += [self.test_env] if self.test_env is not self.env else []
        close_all([*held, self.collector] if self.collector else held)
