"""Run folders: what a run leaves on disk, written so that a kill at any moment loses nothing that was whole."""

import contextlib
import dataclasses
import difflib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from k24lab.errors import ConfigError, RunError, told, warn
from k24lab.lab.config import NOT_HASHED, Config, stored_config
from k24lab.lab.files import atomic_write
from k24lab.lab.paths import runs_dir

CHECKPOINT, PREVIOUS = "checkpoint.safetensors", "checkpoint.prev.safetensors"
CHECKPOINT_FORMAT = "k24lab-checkpoint-2"
FAILED, LOCK = "FAILED", ".lock"  # the error of the last attempt; held by the process that trains the run
# A run waits so long for its lock: `is_locked` holds it for a moment, and a run whose sweep was killed for seconds.
LOCK_SECONDS = 10.0
MOST_NAMED = 4  # runs in a message


def canonical(config: Config) -> Config:
    """The configuration of a new run with its task spelled as `canonical_task` has it, so that equal runs are one."""
    from k24lab.envs.registry import canonical_task  # environments load torch, which readers of runs do without

    return dataclasses.replace(config, task=canonical_task(config.task))


def check_name(name: str) -> str:
    """The name of a group of runs, if it can be that of a folder. Raises ConfigError: it cannot."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(
            f"name = {name!r} must be letters, digits, '.', '_' or '-', beginning with one of the first two"
        )
    return name


def run_folder(config: Config, name: str) -> Path:
    """`runs/<name>/<task>-<method>-s<seed>-<hash>`: readable, and the same for the same configuration."""
    task = re.sub(r"[^A-Za-z0-9.]+", "_", config.task).strip("_")
    return runs_dir() / check_name(name) / f"{task}-{config.method}-s{config.seed}-{config.hash()}"


class RunFolder:
    """One run on disk: config.json, metrics.jsonl, checkpoints, patterns/, summary.json and, last of all, DONE."""

    def __init__(self, path: Path, config: Config):
        self.path, self.config = path, config
        self._damaged = False  # the newest checkpoint, as the last `load_checkpoint` found it
        path.mkdir(parents=True, exist_ok=True)
        if (path / "config.json").exists():
            _check_same(read_config(path), config, path)
        else:
            self._write_json("config.json", dataclasses.asdict(config))

    @property
    def done(self) -> bool:
        """Whether the run has finished."""
        return (self.path / "DONE").exists()

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Hold the run while it is trained; an error that ends the attempt is kept in FAILED.

        The system frees the lock when the process ends, however it ends. Raises RunError if another process holds it.
        """
        try:
            lock = FileLock(self.path / LOCK).acquire(timeout=LOCK_SECONDS, poll_interval=0.05)
        except Timeout:
            raise RunError(f"{self.path}: another process trains this run") from None
        with lock:
            (self.path / FAILED).unlink(missing_ok=True)
            self._clear_temporary(but=(".config.json.",))  # a process that waits for the lock may be writing it
            try:
                yield
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:
                if _was_interrupted(error):
                    raise KeyboardInterrupt from error
                with contextlib.suppress(OSError), atomic_write(self.path / FAILED) as file:  # the disk may be full
                    file.write(f"{type(error).__name__}: {error}\n".encode())
                if not isinstance(error, Exception):  # else it would end the process, and perhaps with exit code 0
                    raise RunError(f"the run was ended by {told(error)}") from error
                raise

    def _clear_temporary(self, but: tuple[str, ...] = ()) -> None:
        """Remove what killed attempts were writing: checkpoints are large."""
        for path in self.path.rglob(".*.tmp"):
            if not path.name.startswith(but):
                path.unlink(missing_ok=True)

    def _write_json(self, name: str, data: dict[str, Any]) -> None:
        with atomic_write(self.path / name) as file:
            file.write((json.dumps(data, indent=1) + "\n").encode())

    def open_metrics(self, size: int) -> BinaryIO:
        """The metrics file, cut back to `size` bytes: what the checkpoint knew, later lines are made again."""
        path = self.path / "metrics.jsonl"
        found = path.stat().st_size if path.exists() else 0
        if found < size:
            raise RunError(f"{path} has {found} bytes, its checkpoint knows of {size}; delete the run folder")
        file = path.open("ab")
        file.truncate(size)
        file.seek(0, os.SEEK_END)  # truncate leaves the position, and with it the next checkpoint's size, behind
        return file

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write a checkpoint; the one before is kept as a reserve, unless it is damaged."""
        newest, reserve = self.path / CHECKPOINT, self.path / PREVIOUS
        with atomic_write(newest) as file:
            write_checkpoint(file, state, self.config.hash())
            if newest.exists() and not self._damaged:
                # A copy under the reserve's name first: at no moment is there no checkpoint.
                reserve.unlink(missing_ok=True)
                try:
                    reserve.hardlink_to(newest)
                except OSError:  # a file system without hard links
                    shutil.copyfile(newest, reserve)
        self._damaged = False

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read; None if there is none at all. Raises RunError if none can be used."""
        problems = []
        for name in (CHECKPOINT, PREVIOUS):
            if not (self.path / name).exists():
                continue
            try:
                state = read_checkpoint(self.path / name, self.config.hash())
            except RunError as error:
                problems.append(str(error))
                continue
            self._damaged = bool(problems)
            if problems:
                warn(f"{problems[0]}; going on from {name}")
            return state
        if problems:
            raise RunError("; ".join(problems) + "; delete the run folder to start afresh")
        return None

    def save_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Store arrays of numpy as an npz file of the run folder."""
        import numpy as np

        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as file:
            np.savez_compressed(file, **arrays)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary and mark the run as done; its checkpoints' reserve is no longer needed."""
        self._write_json("summary.json", summary)
        (self.path / PREVIOUS).unlink(missing_ok=True)
        self._clear_temporary()
        with atomic_write(self.path / "DONE"):
            pass


def _was_interrupted(error: BaseException) -> bool:
    """Whether an error only follows from Ctrl-C or SIGTERM: what is stopped half-way may raise one of its own."""
    context = error.__context__
    return isinstance(context, KeyboardInterrupt) or (context is not None and _was_interrupted(context))


def is_locked(path: Path) -> bool:
    """Whether a process trains the run in this folder, on this machine or another that shares it."""
    if not (path / LOCK).exists():
        return False
    try:
        with FileLock(path / LOCK).acquire(blocking=False):
            return False
    except Timeout:
        return True


def read_config(path: Path) -> Config:
    """The configuration of a run folder. Raises RunError: no such file, or not a configuration of this version."""
    file = path / "config.json"
    try:
        fields = json.loads(file.read_text())
        if not isinstance(fields, dict):
            raise ConfigError("it holds no mapping of fields to values")
        return stored_config(fields)
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path} is no run folder: it has no config.json") from None
    except (ValueError, ConfigError) as error:  # not text, not JSON, not a configuration
        raise RunError(f"{file} cannot be used: {error}") from error


def find_folder(run: str) -> Path:
    """The folder of a run that is named by its path, as group/run, or by the beginning of an id that no other run has.

    Raises:
        RunError: there is none, or there are several.
    """
    for path in (Path(run), runs_dir() / run):
        if (path / "config.json").is_file():
            return path
    every = sorted(file.parent for file in runs_dir().glob("*/*/config.json"))
    found = [folder for folder in every if folder.name == run] or [f for f in every if f.name.startswith(run)]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{folder.parent.name}/{folder.name}" for folder in found[:MOST_NAMED])
        raise RunError(f"run {run!r} is one of {len(found)}: {several}{', …' if len(found) > MOST_NAMED else ''}")
    near = difflib.get_close_matches(run, {folder.name for folder in every}, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise RunError(f"no run {run!r}: no folder with a config.json, and none of the {len(every)} in {runs_dir()}{hint}")


def write_checkpoint(file: BinaryIO, state: dict[str, Any], config_hash: str) -> None:
    """Write the state of a run of this configuration into an open file."""
    from k24lab.lab import tensorfile

    tensors: dict[str, Any] = {}
    tree = json.dumps(tensorfile.flatten(state, tensors))
    tensorfile.write(file, {"format": CHECKPOINT_FORMAT, "config_hash": config_hash, "state": tree}, tensors)


def read_checkpoint(path: Path, config_hash: str) -> dict[str, Any]:
    """Read a checkpoint without running any code in it.

    Raises:
        RunError: truncated, damaged, not a checkpoint of this version of the package, or of another configuration.
    """
    from k24lab.lab import tensorfile

    about, tensors = tensorfile.read(path, CHECKPOINT_FORMAT)
    if about["config_hash"] != config_hash:
        raise RunError(f"{path} belongs to config {about['config_hash']}, not to this run's {config_hash}")
    return tensorfile.restore(json.loads(about["state"]), tensors)


def _check_same(stored: Config, given: Config, path: Path) -> None:
    """Refuse to mix two configurations in one folder."""
    a, b = dataclasses.asdict(stored), dataclasses.asdict(given)
    differ = [f"{k} = {a[k]!r} there, {b[k]!r} here" for k in a if a[k] != b[k] and k not in NOT_HASHED]
    if differ:
        raise RunError(f"{path} holds another run: {'; '.join(differ)}")
