"""Times of calls, interleaved: on a shared machine only calls that ran in the same seconds can be compared."""

import statistics
import timeit
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

Call = Callable[[], object]
Timer = Callable[[Call], Callable[[], float]]  # prepares a call, and returns what measures it once, in microseconds
SHORTEST = 300e-6  # seconds: faster calls are repeated until they take so long together


def cpu_timer(call: Call, repeats: int = 3) -> Callable[[], float]:
    """Measures a call on the CPU: the minimum of `repeats`, because now and then a process is paused for milliseconds.

    The two calls before the first measurement warm up.
    """
    call()
    timer = timeit.Timer(call)
    n_calls = max(1, int(SHORTEST / max(timer.timeit(1), 1e-7)))
    return lambda: min(timer.repeat(repeats, n_calls)) / n_calls * 1e6


def interleaved(calls: Mapping[str, Call], rounds: int, timer: Timer = cpu_timer) -> dict[str, list[float]]:
    """Microseconds of each call in each round; every round measures all calls, every other one in reverse order."""
    measures = {name: timer(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for k in range(rounds):
        for name in names if k % 2 else reversed(names):
            times[name].append(measures[name]())
    return times


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """The median over rounds of `times / others`."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def show(title: str, table: pd.DataFrame) -> None:
    """Print all of a table."""
    print(f"\n{title}:\n{table.to_string(index=False, float_format='{:.2f}'.format)}")
