"""Where a run comes from: code, packages, machine. One line for each attempt that trained it."""

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from k24lab.errors import warn
from k24lab.lab.config import Config
from k24lab.lab.files import atomic_write
from k24lab.lab.paths import CHECKOUT

FILE = "provenance.jsonl"
PACKAGES = ("torch", "numpy", "pettingzoo", "mpe2", "vmas", "jaxmarl", "jax", "smacv2", "pysc2")
MOST_CHANGED = 20  # files of a checkout that are named


def record(folder: Path, config: Config, t_env: int, kernels: str, n_threads: int) -> None:
    """Add an attempt that starts at `t_env`; a `RunWarning` if it computes otherwise than the one that it goes on from.

    `kernels` is the build of the CPU kernels that does the work, or torch (`k24lab.ops.library.in_use`).
    """
    now: dict[str, Any] = {"n_threads": n_threads, "kernels": kernels}
    # An attempt that started at t_env itself left no checkpoint, and so nothing in this run.
    earlier = [line for line in read(folder) if isinstance(line.get("t_env"), int) and line["t_env"] < t_env]
    before = earlier[-1] if earlier else now
    if changed := [key for key in now if before.get(key, now[key]) != now[key]]:
        each = ", ".join(f"{key} = {now[key]!r} (before: {before[key]!r})" for key in changed)
        warn(f"{folder.name} goes on with {each}: from here on its numbers differ in their last digits")
    append(folder, _origin() | {"t_env": t_env, "seed": config.seed, "device": config.device} | now)


def append(folder: Path, line: dict[str, Any]) -> None:
    """Add a line to the file of a run."""
    path = folder / FILE
    before = path.read_bytes() if path.exists() else b""
    with atomic_write(path) as file:
        file.write(before + (json.dumps(line) + "\n").encode())


def read(folder: Path) -> list[dict[str, Any]]:
    """All attempts of a run, first to last; lines that are no JSON objects are left out, and so is a missing file."""
    path = folder / FILE
    attempts = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            attempts.append(json.loads(line))
    return [attempt for attempt in attempts if isinstance(attempt, dict)]


def _origin() -> dict[str, Any]:
    """Time (UTC), versions, code and machine of this process."""
    import torch

    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "k24lab": _version("k24lab"),
        **_code(CHECKOUT),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "system": platform.platform(),
        "host": platform.node(),
        "cpu": cpu_name(),
        "n_cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")  # Linux, where platform.processor() is empty
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


@functools.cache
def _code(checkout: Path) -> dict[str, Any]:
    """Commit, changed files and SHA-256 of the lock of the checkout that the package is imported from, else None."""
    lock = checkout / "requirements.lock"
    # Figures are what runs lead to, not what they come from, and every command that draws changes some.
    changed = _git(checkout, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!figures")
    return {
        "commit": _git(checkout, "rev-parse", "HEAD"),
        "changed": None if changed is None else [line[3:] for line in changed.splitlines()[:MOST_CHANGED]],
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
    }


def _git(checkout: Path, *command: str) -> str | None:
    """What git says; None where there is no git, or no repository of this package."""
    if not (checkout / ".git").exists():  # the package may be installed inside someone else's repository
        return None
    try:
        done = subprocess.run(["git", "-C", checkout, *command], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip("\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
