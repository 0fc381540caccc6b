"""Into a checkout and out again: configurations in `src/config/algs`, and one line in `src/learners/__init__.py`."""

import argparse
import sys
from pathlib import Path

from k24lab.errors import ConfigError, K24Error
from k24lab.integrations.epymarl.configs import Flavour, config_files
from k24lab.lab.files import atomic_write

# The learners are imported by whatever trains, and import neither agents nor controllers: one line there is enough.
REGISTRY_FILE = "src/learners/__init__.py"
CONFIG_FOLDER = "src/config/algs"
CALL = b"from k24lab.integrations.epymarl import register; register()"
LINE = CALL + b"  # k24lab; python -m k24lab.integrations.epymarl . --remove takes it out"
BLOCK = b"\n" + LINE + b"\n"  # begins with a newline, since pymarl2's file does not end with one
# What both have, and what tells them apart.
COMMON = (
    "src/main.py",
    REGISTRY_FILE,
    "src/controllers/__init__.py",
    "src/modules/agents/__init__.py",
    "src/modules/mixers/vdn.py",
    CONFIG_FOLDER,
)
OWN: dict[Flavour, tuple[str, ...]] = {
    "epymarl": ("src/components/standarize_stream.py",),
    "pymarl2": ("src/modules/mixers/nmix.py", "src/learners/nq_learner.py"),
}
NEXT = """
Now, in that folder, with k24lab installed in the Python that runs it, for example:
  python src/main.py --config=k24_qmix --env-config=<a name in src/config/envs> with env_args.<...>"""


def main(argv: list[str] | None = None) -> None:
    """Integrate or remove; an error that its user can fix is one line and exit code 2."""
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
        print(f"k24lab: error: {error.strerror}: {error.filename}; the same command goes on", file=sys.stderr)
        raise SystemExit(2) from None
    print("\n".join(done) + ("" if given.remove else f"\n{NEXT}"))


def integrate(folder: Path) -> list[str]:
    """Make `python src/main.py --config=k24_qmix ...` work in a checkout; a second call changes nothing.

    Returns:
        What was done, a line each.

    Raises:
        ConfigError: if the folder is no checkout, or has other files of these names; then nothing is changed.
    """
    flavour = recognise(folder)
    texts = {f"{CONFIG_FOLDER}/{name}": text.encode() for name, text in config_files(flavour).items()}
    if other := [name for name, text in texts.items() if (folder / name).exists() and _read(folder, name) != text]:
        raise ConfigError(
            f"{', '.join(other)} in {folder} differ from what this version of k24lab writes: rename or delete them "
            "first; nothing was changed"
        )
    texts[REGISTRY_FILE] = _without_line(_read(folder, REGISTRY_FILE)) + BLOCK
    done = []
    for name, text in texts.items():
        before = _read(folder, name) if (folder / name).exists() else None
        if before != text:
            with atomic_write(folder / name) as file:
                file.write(text)
            done.append(f"{'written' if before is None else 'changed'}  {name}")
    return [f"{flavour} in {folder}", *(done or ["unchanged: everything is in place"])]


def remove(folder: Path) -> list[str]:
    """Take everything out of a checkout again, except configurations that were edited; returns what was done."""
    flavour = recognise(folder)
    done = []
    before = _read(folder, REGISTRY_FILE)
    if (after := _without_line(before)) != before:
        with atomic_write(folder / REGISTRY_FILE) as file:
            file.write(after)
        done.append(f"changed  {REGISTRY_FILE}")
    for name, text in config_files(flavour).items():
        path = folder / CONFIG_FOLDER / name
        if not path.exists():
            continue
        if path.read_bytes() == text.encode():
            path.unlink()
            done.append(f"removed  {CONFIG_FOLDER}/{name}")
        else:
            done.append(f"kept     {CONFIG_FOLDER}/{name}: not as this version of k24lab writes it")
    return [f"{flavour} in {folder}", *(done or ["unchanged: nothing of k24lab is there"])]


def recognise(folder: Path) -> Flavour:
    """Which of the two code bases a folder is.

    Raises:
        ConfigError: naming what is missing.
    """
    missing = [path for path in COMMON if not (folder / path).exists()]
    if missing:
        hint = f"; did you mean {folder.parent}?" if (folder.parent / COMMON[0]).is_file() else ""
        raise ConfigError(f"{folder} is no checkout of epymarl or pymarl2: {', '.join(missing)} missing{hint}")
    for flavour, files in OWN.items():
        if all((folder / path).is_file() for path in files):
            return flavour
    lacks = "; ".join(f"for {flavour} {', '.join(files)}" for flavour, files in OWN.items())
    raise ConfigError(f"{folder} is like epymarl and pymarl2, but is neither; missing are {lacks}")


def _read(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


def _without_line(text: bytes) -> bytes:
    """The file of the registry as it was before our line, of this or another version, came to its end."""
    lines = text.replace(BLOCK, b"").splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(CALL))
