"""Errors a user can cause, each with the key, the value and what is allowed."""

import difflib
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path


class K24Error(Exception):
    """Base of every error that a user's input can cause; the command line prints it alone."""


class ConfigError(K24Error):
    """A configuration, task or parameter that cannot be used."""


class InputError(ConfigError, ValueError):
    """An argument of a layer or function that cannot be used: a wrong shape, an index out of range."""


class RunError(K24Error):
    """A run folder, checkpoint or metrics file that cannot be used, or an environment that cannot go on."""


class RunWarning(UserWarning):
    """Something in a run folder was left out."""


def warn(message: str) -> None:
    """A `RunWarning` without the place in the package that gives it: it is about runs, not about code.

    Given each time, without a registry of what has been said: a cell that is run again still leaves runs out.
    """
    warnings.warn_explicit(message, RunWarning, "k24lab", 0)


def unknown(kind: str, value: object, allowed: Iterable[str], meant: str | None = None) -> str:
    """One sentence for an unknown name: what it was, the nearest right name (or `meant`), all that is allowed."""
    names = sorted(allowed)
    near = [meant] if meant else difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {value!r}{hint} (allowed: {', '.join(names)})"


def told(error: BaseException) -> str:
    """What somebody else's code raised, in one line: class, message, and the line of the file where it happened."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # an error that cannot be printed is told all the same
        message = "its message cannot be read"
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is where it was caught
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return type(error).__name__ + (f": {message}" if message else "") + place
