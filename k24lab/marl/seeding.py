"""Seeds of everything that is random in a run, all from the run's one seed and independent of each other."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a run draws random numbers for."""

    TRAIN_EPISODES = 0
    TEST_EPISODES = 1
    NETWORK = 2
    MASKS = 3
    EXPLORATION = 4
    REPLAY = 5
    ACTING_MASKS = 6
    TEST_MASKS = 7


def derive_seed(run_seed: int, stream: Stream, counter: int = 0) -> int:
    """A 32-bit seed for the `counter`-th use of a stream; neighbouring runs and streams share nothing."""
    return int(np.random.SeedSequence([run_seed, stream, counter]).generate_state(1)[0])
