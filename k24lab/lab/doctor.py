"""Which optional parts are there, and the command that installs a missing one; or what is wrong with a task."""

import importlib.metadata
import os
import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

from k24lab.errors import ConfigError, unknown

SPARSE_CAPABILITY = (8, 0)  # first compute capability with 2:4 sparse tensor cores


class Check(NamedTuple):
    """One line of the table."""

    part: str
    found: str | None  # None: missing
    fix: str = ""  # what to do where it is missing


def doctor(parts: Sequence[str] = (), task: str | None = None, episodes: int = 5) -> int:
    """Print a table of what is there and what is missing, or what the environment of a task does wrong.

    Returns:
        Exit code: 1 if anything of a part asked for by name is missing, or the task has a problem, else 0.
    """
    if task is not None:
        from k24lab.envs.task_doctor import examine_task

        return examine_task(task, episodes)
    for name in parts:
        if name not in PARTS:
            raise ConfigError(unknown("part", name, PARTS))
    checks = {name: PARTS[name]() for name in parts or PARTS}
    print(table(checks))
    missing = any(check.found is None for lines in checks.values() for check in lines)
    return int(bool(parts) and missing)


def table(checks: dict[str, list[Check]]) -> str:
    """One line a check, part by part, and below each missing one what fixes it."""
    width = max(len(check.part) for lines in checks.values() for check in lines)
    text = []
    for name, lines in checks.items():
        text.append(name)
        for check in lines:
            sign, found = ("missing", "") if check.found is None else ("ok", check.found)
            text.append(f"  {sign:8}{check.part:{width}}  {found}".rstrip())
            if check.found is None:
                text.append(f"  {'':8}{'':{width}}  -> {check.fix}")
    return "\n".join(text)


def package(name: str, fix: str) -> Check:
    """Whether a package is installed, and its version; it is not imported."""
    try:
        return Check(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, None, fix)


def _of_extra(extra: str, *names: str) -> Callable[[], list[Check]]:
    """The packages of an extra of k24lab."""
    return lambda: [package(name, f"pip install 'k24lab[{extra}]'") for name in names]


def _kernels() -> list[Check]:
    """The CPU kernels in C; without them torch does their work, slower."""
    from k24lab.ops.library import SWITCH, describe

    built = describe()
    fix = f"unset {SWITCH}" if os.environ.get(SWITCH) else "install a C compiler, then k24lab again"
    return [Check("CPU kernels", None if built == "torch" else built, fix)]


def _gpu() -> list[Check]:
    """A GPU that torch can use, and its tensor cores for 2:4 sparsity; training needs neither."""
    import torch

    gpu = sparse = None
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        gpu = f"{torch.cuda.get_device_name()}, compute capability {capability[0]}.{capability[1]}"
        sparse = "yes" if capability >= SPARSE_CAPABILITY else None
    built = torch.version.cuda or "none"
    return [
        Check("GPU", gpu, f"an NVIDIA GPU with its driver, and a torch built for CUDA (built for: {built})"),
        Check("2:4 kernels", sparse, "a GPU of compute capability 8.0 or later (Ampere)"),
    ]


def _video() -> list[Check]:
    """MP4 files of `k24lab replay`; a GIF needs nothing."""
    found = shutil.which("ffmpeg") or package("imageio-ffmpeg", "").found
    return [Check("ffmpeg", found, "pip install 'k24lab[video]'")]


def _smacv2() -> list[Check]:
    """Packages, the game, its program and map."""
    from k24lab.envs.smacv2 import INSTALL, game_folder, missing_game_files

    packages = [package(name, INSTALL) for name in ("smacv2", "pysc2", "s2clientprotocol", "portpicker")]
    packages += [package(name, f"pip install {name}") for name in ("absl-py", "protobuf", "websocket-client", "psutil")]
    game = [Check("StarCraft II", None, said) for said in missing_game_files()]
    return [*packages, *(game or [Check("StarCraft II", str(game_folder()))])]


PARTS: dict[str, Callable[[], list[Check]]] = {
    "torch": lambda: [package("torch", "pip install torch")],
    "kernels": _kernels,
    "cuda": _gpu,
    "notebooks": _of_extra("notebooks", "jupyterlab", "ipywidgets", "papermill"),
    "tensorboard": _of_extra("tensorboard", "tensorboard"),
    "wandb": _of_extra("wandb", "wandb"),
    "onnx": _of_extra("onnx", "onnx", "onnxruntime"),
    "video": _video,
    "mpe": _of_extra("mpe", "pettingzoo", "mpe2"),
    "vmas": _of_extra("vmas", "vmas"),
    "lbforaging": _of_extra("lbforaging", "lbforaging"),
    "rware": _of_extra("rware", "rware"),
    "smax": _of_extra("smax", "jax", "jaxmarl"),
    "smacv2": _smacv2,
}
