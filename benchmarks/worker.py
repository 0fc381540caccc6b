"""One side of a comparison, in a process of its own.

`python -m benchmarks.worker MODULE:FUNCTION CORES SETTINGS` calls the function with a `Meter` and the settings (JSON).
The function works until its process ends and tells the meter what it has done. Each line on stdin asks for a piece of
work of so many seconds, and is answered on stdout with its speed. This module imports the standard library only: a
peer's Python need not have k24lab.
"""

import importlib
import json
import os
import sys
import time
from typing import TextIO


class Meter:
    """Measures work in pieces, which the driver asks for.

    A piece ends with the first work that is done after its seconds. With one core the clock is that of the process's
    CPU time, which others on the machine do not move; with more it is the clock on the wall.
    """

    def __init__(self, questions: TextIO, answers: TextIO, cores: int):
        self.questions, self.answers = questions, answers
        self.clock = time.process_time if cores == 1 else time.perf_counter
        self.wait()

    def wait(self) -> None:
        """Begin the next piece when it is asked for; end the process when the driver has gone."""
        line = self.questions.readline()
        if not line:
            os._exit(0)  # libraries that stand between here and the end of the process have nothing to save
        self.units, self.seconds, self.start = 0.0, float(line), self.clock()

    def __call__(self, units: float = 1) -> None:
        """Count work that has been done."""
        self.units += units
        elapsed = self.clock() - self.start
        if elapsed >= self.seconds:
            print(json.dumps(self.units / elapsed), file=self.answers, flush=True)
            self.wait()


def main() -> None:
    """Read the command line and work."""
    target, cores, settings = sys.argv[1:]
    if int(cores) > 1 and hasattr(os, "sched_setaffinity"):  # for libraries that count the cores themselves
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    module, _, function = target.partition(":")
    meter = Meter(sys.stdin, answers, int(cores))  # before the imports: sides do not prepare at the same time
    getattr(importlib.import_module(module), function)(meter, **json.loads(settings))


if __name__ == "__main__":
    main()
