"""`python -m k24lab.integrations.epymarl PATH [--remove]`."""

from pathlib import Path
from typing import Annotated

import tyro

from k24lab.cli import one_line_errors
from k24lab.integrations.epymarl.install import integrate, remove as remove_from


def main(path: Annotated[Path, tyro.conf.Positional], remove: bool = False) -> None:
    """Register K-2:4's agent, controller and learner in a checkout of epymarl or pymarl2.

    Adds one line to src/learners/__init__.py, and ready algorithm configurations to src/config/algs.

    Args:
        path: the checkout, the folder that holds src/.
        remove: take all of it out again.
    """
    print("\n".join((remove_from if remove else integrate)(path.resolve())))


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, prog="python -m k24lab.integrations.epymarl")
