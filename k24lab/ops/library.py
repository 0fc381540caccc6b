"""CPU kernels in C: 2:4 matrices times activations, and a GRU over whole sequences (`common.h`).

They are built when the package is installed, where there is a C compiler. Without them, with another dtype, and on
a GPU the same is computed by torch alone.
"""

import contextlib
import ctypes
import functools
import importlib.machinery
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from k24lab.errors import ConfigError

SWITCH = "K24LAB_KERNELS"  # environment variable: "torch" does without the kernels
BUILDS = {
    "AVX512": ("avx512", "avx2"),
    "AVX2": ("avx2",),
}  # that a processor runs (torch's names), besides the portable
MOST_THREADS = 2  # with more threads torch is faster than the kernels, which use two at most
_threads = 1
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The fastest build that this processor runs; None where there is none. Raises ConfigError as `check_switch`."""
    check_switch()
    if os.environ.get(SWITCH):
        return None
    names = [f"_k24_{build}" for build in BUILDS.get(torch.backends.cpu.get_cpu_capability(), ())]
    for name in [*names, "_k24"]:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = Path(__file__).with_name(name + suffix)
            if path.exists():
                return ctypes.CDLL(str(path))
    logging.getLogger("k24lab").warning("the CPU kernels are not built (no C compiler?): torch does their work, slower")
    return None


def check_switch() -> None:
    """Refuse, as a ConfigError, a value of the environment variable that would not do what its author meant."""
    if (value := os.environ.get(SWITCH)) and value != "torch":
        raise ConfigError(f"{SWITCH} = {value!r} in the environment must be 'torch' or unset")


def usable(tensor: Tensor) -> bool:
    """Whether the kernels can work on tensors like this one, and should.

    They read memory by its address, which tensors inside torch.vmap do not have. torch.compile traces torch alone.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    suits = tensor.is_cpu and tensor.dtype == torch.float32
    return suits and torch.get_num_threads() <= MOST_THREADS and library() is not None


def use_threads(n: int) -> None:
    """Set the threads of this process: of the kernels one or two, and torch has one then; of torch alone any number.

    What torch does between kernels is small, and a second thread of its own would only be in the way.
    """
    global _threads
    _threads = n if n <= MOST_THREADS and library() is not None else 1
    torch.set_num_threads(1 if _threads > 1 else n)


@contextlib.contextmanager
def threads_used(n: int) -> Iterator[None]:
    """`use_threads(n)` until the end; then the threads are as many as before."""
    global _threads
    before, torch_before = _threads, torch.get_num_threads()
    use_threads(n)
    try:
        yield
    finally:
        _threads = before
        torch.set_num_threads(torch_before)


def threads() -> int:
    """How many threads the kernels use."""
    return _threads


def in_use(tensor: Tensor) -> str:
    """What computes with tensors like this one: avx512, avx2, portable or torch."""
    return describe() if usable(tensor) else "torch"


def keep_memory() -> None:
    """Let the C library keep what it has freed: a batch's arrays are as large in the next update.

    Without it every update gets its larger arrays from the system anew, page by page.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1)):
            libc.mallopt(option, value)


def describe() -> str:
    """Which build is there and switched on, for `k24lab doctor`: avx512, avx2, portable or torch."""
    lib = library()
    if lib is None:
        return "torch"
    return Path(lib._name).name.partition(".")[0].removeprefix("_k24").removeprefix("_") or "portable"
