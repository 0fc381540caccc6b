"""Private states of the global random generators, for environments of libraries that draw from them."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


class PrivateRandomState:
    """State of the global generators of torch, NumPy and Python that one environment has to itself."""

    def __init__(self) -> None:
        self._state = _state()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """The global generators hold this state inside, and what they held before outside."""
        outside = _state()
        _set_state(self._state)
        try:
            yield
        finally:
            self._state = _state()
            _set_state(outside)


def seed_everything(seed: int) -> None:
    """Seed every global generator of the CPU and the GPUs; below 2**32."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def _state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()  # noqa: NPY002


def _set_state(state: tuple[Any, ...]) -> None:
    cpu, cuda, numpy_state, python_state = state
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(python_state)
