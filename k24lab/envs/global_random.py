"""Private states of the global random generators, for environments of libraries that draw from them."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator


class PrivateRandomState:
    """State of the global generators of torch, NumPy and Python that one environment has to itself.

    NumPy's generator is exchanged as a whole, because its state takes 0.1 ms to read. NumPy then forgets the second of
    the two numbers that `np.random.randn` draws at a time.
    """

    def __init__(self) -> None:
        self._state = _state()
        self._numpy = np.random.MT19937(0)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """The global generators hold this state inside, and what they held before outside."""
        outside, numpy_outside = _state(), get_bit_generator()
        _set_state(self._state)
        set_bit_generator(self._numpy)
        try:
            yield
        finally:
            self._state = _state()
            _set_state(outside)
            set_bit_generator(numpy_outside)


def seed_everything(seed: int) -> None:
    """Seed every global generator of the CPU and the GPUs; below 2**32."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def _state() -> tuple[Any, ...]:
    """Of torch and Python."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cuda, random.getstate()


def _set_state(state: tuple[Any, ...]) -> None:
    cpu, cuda, python_state = state
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    random.setstate(python_state)
