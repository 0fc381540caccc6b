"""State of the global random generators, for worlds that draw from them."""

import random
from typing import Any

import numpy as np
import torch


def random_state() -> tuple[Any, ...]:
    """Of every global generator that a world may draw from or seed; the legacy one of numpy is among them."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()  # noqa: NPY002


def set_random_state(state: tuple[Any, ...]) -> None:
    """Put back what `random_state` took."""
    cpu, cuda, numpy_state, python_state = state
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(python_state)


def seed_everything(seed: int) -> None:
    """Every global generator of the CPU and the GPUs."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
