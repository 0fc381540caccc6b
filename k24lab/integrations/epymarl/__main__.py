"""`python -m k24lab.integrations.epymarl PATH [--remove]`."""

import argparse
import sys
from pathlib import Path

from k24lab.errors import K24Error
from k24lab.integrations.epymarl.install import integrate, remove

NEXT = """
Now, in that folder, with k24lab installed in the Python that runs it, for example:
  python src/main.py --config=k24_qmix --env-config=<a name in src/config/envs> with env_args.<...>"""


def main(argv: list[str] | None = None) -> None:
    """Integrate or remove; an error of the user's is one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m k24lab.integrations.epymarl",
        description="Register K-2:4's agent, controller and learner in a checkout of epymarl or pymarl2 (one line in "
        "src/learners/__init__.py) and write ready algorithm configurations into src/config/algs.",
    )
    parser.add_argument("path", type=Path, help="the checkout, the folder that holds src/")
    parser.add_argument("--remove", action="store_true", help="take all of it out again")
    given = parser.parse_args(argv)
    try:
        done = (remove if given.remove else integrate)(given.path.resolve())
    except K24Error as error:
        print(f"k24lab: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        print(f"k24lab: error: {error.strerror}: {error.filename}; nothing was changed", file=sys.stderr)
        raise SystemExit(2) from None
    print("\n".join(done))
    if not given.remove:
        print(NEXT)


if __name__ == "__main__":
    main()
