"""The command line `k24lab`: which command is meant, and how its errors are told."""

import errno
import inspect
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Sequence

import tyro

from k24lab.commands import COMMANDS, train_with_defaults
from k24lab.errors import ConfigError, K24Error, unknown

# What is wrong with a disk or a path, not with the package: one line says it.
DISK_ERRORS = "ENOSPC EDQUOT EROFS EACCES EPERM ENOTDIR EEXIST EISDIR".split()


def main() -> None:
    """Run a command; an error that its user can fix is one line and exit code 2."""
    # What a cluster or a shutdown sends ends a run like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _run(sys.argv[1:])
        sys.stdout.flush()
    except K24Error as error:
        print(f"k24lab: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader, `head` for example, has enough (broken pipes of workers are handled there)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        if errno.errorcode.get(error.errno or 0) not in DISK_ERRORS:
            raise
        print(f"k24lab: error: {error.strerror}: {error.filename or 'no file named'}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("k24lab: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None


def _run(arguments: Sequence[str]) -> None:
    """Parse and run the command that is named; only its parser is built, as that of `train` takes a while."""
    name, *rest = arguments or [""]
    if name in ("", "-h", "--help"):
        print(_overview(), file=sys.stdout if name else sys.stderr)
        raise SystemExit(0 if name else 2)
    if name not in COMMANDS:
        raise ConfigError(unknown("command", name, COMMANDS))
    command = train_with_defaults(rest) if name == "train" else COMMANDS[name]
    tyro.cli(command, prog=f"k24lab {name}", args=rest)


def _overview() -> str:
    """A line or two for each command."""
    width = max(map(len, COMMANDS))
    lines = ["usage: k24lab COMMAND ...", ""]
    for name, command in COMMANDS.items():
        summary = inspect.getdoc(command) or ""
        fill = textwrap.TextWrapper(min(shutil.get_terminal_size().columns, 120), subsequent_indent=" " * (width + 4))
        lines += fill.wrap(f"  {name:{width}}  {summary.splitlines()[0]}")
    return "\n".join([*lines, "", "Arguments and examples of a command: k24lab COMMAND --help"])
