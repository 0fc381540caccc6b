"""The command line `k24lab`: which command is meant, and how its errors are told."""

import contextlib
import errno
import inspect
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence

import tyro

from k24lab.commands import COMMANDS, only_used_settings, train_with_defaults
from k24lab.errors import ConfigError, K24Error, unknown

# What is wrong with a disk or a path, not with the package: one line says it.
DISK_ERRORS = "ENOSPC EDQUOT EROFS EACCES EPERM ENOTDIR EEXIST EISDIR".split()


def main() -> None:
    """Run the command that `sys.argv` names."""
    with one_line_errors():
        _run(sys.argv[1:])


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Tell an error that the user can fix in one line, with exit code 2; interrupted is exit code 130."""
    # What a cluster or a shutdown sends ends a run like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
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
    if name != "train":
        tyro.cli(COMMANDS[name], prog=f"k24lab {name}", args=rest)
        return
    command = train_with_defaults(rest)
    helps = {"-h", "--help"}.intersection(rest)
    with only_used_settings(command.keywords["config"].method) if helps else contextlib.nullcontext():
        tyro.cli(command, prog="k24lab train", args=rest)


def _overview() -> str:
    """The first sentence of every command."""
    width = max(map(len, COMMANDS))
    fill = textwrap.TextWrapper(shutil.get_terminal_size().columns, subsequent_indent=" " * (width + 4))
    lines = ["usage: k24lab COMMAND ...", ""]
    for name, command in COMMANDS.items():
        lines += fill.wrap(f"  {name:{width}}  {(inspect.getdoc(command) or '').splitlines()[0]}")
    return "\n".join([*lines, "", "Arguments and examples of a command: k24lab COMMAND --help"])
