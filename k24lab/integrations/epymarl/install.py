"""Into a checkout and out again: configurations in `src/config/algs`, and one line in `src/learners/__init__.py`."""

from pathlib import Path

from k24lab.errors import ConfigError
from k24lab.integrations.epymarl.configs import Flavour, config_files
from k24lab.lab.files import atomic_write

# The learners are imported by whatever trains, and import neither agents nor controllers: one line there is enough.
REGISTRY_FILE = "src/learners/__init__.py"
CONFIG_FOLDER = "src/config/algs"
CALL = b"from k24lab.integrations.epymarl import register; register()"
LINE = CALL + b"  # k24lab; python -m k24lab.integrations.epymarl . --remove takes it out"
BLOCK = b"\n" + LINE + b"\n"  # begins with a newline, since pymarl2's file does not end with one
# What both code bases have, and what tells them apart.
COMMON = ("src/main.py", REGISTRY_FILE, "src/controllers/__init__.py", "src/modules/agents/__init__.py", CONFIG_FOLDER)
OWN: dict[Flavour, tuple[str, ...]] = {
    "epymarl": ("src/components/standarize_stream.py",),
    "pymarl2": ("src/modules/mixers/nmix.py", "src/learners/nq_learner.py"),
}


def integrate(folder: Path) -> list[str]:
    """Make `python src/main.py --config=k24_qmix ...` work in a checkout; a second call changes nothing.

    Returns what was done, a line each. In a folder that is no checkout, or has other files of these names, nothing is
    changed (ConfigError).
    """
    flavour = recognise(folder)
    texts = {folder / CONFIG_FOLDER / name: text.encode() for name, text in config_files(flavour).items()}
    there = {path: path.read_bytes() for path in [*texts, folder / REGISTRY_FILE] if path.exists()}
    if other := [str(path) for path, text in texts.items() if there.get(path, text) != text]:
        raise ConfigError(
            f"{', '.join(other)}: not as this version of k24lab writes it; rename or delete it, nothing was changed"
        )
    texts[folder / REGISTRY_FILE] = _without_line(there[folder / REGISTRY_FILE]) + BLOCK
    done = []
    for path, text in texts.items():
        if there.get(path) != text:
            with atomic_write(path) as file:
                file.write(text)
            done.append(f"{'changed' if path in there else 'written'}  {path.relative_to(folder)}")
    return [f"{flavour} in {folder}", *(done or ["unchanged: everything is in place"])]


def remove(folder: Path) -> list[str]:
    """Take everything out of a checkout again, except configurations that were edited; returns what was done."""
    flavour = recognise(folder)
    done = []
    before = (folder / REGISTRY_FILE).read_bytes()
    if (after := _without_line(before)) != before:
        with atomic_write(folder / REGISTRY_FILE) as file:
            file.write(after)
        done.append(f"changed  {REGISTRY_FILE}")
    for name, text in config_files(flavour).items():
        path = folder / CONFIG_FOLDER / name
        if path.exists() and path.read_bytes() == text.encode():
            path.unlink()
            done.append(f"removed  {CONFIG_FOLDER}/{name}")
        elif path.exists():
            done.append(f"kept     {CONFIG_FOLDER}/{name}: not as this version of k24lab writes it")
    return [f"{flavour} in {folder}", *(done or ["unchanged: nothing of k24lab is there"])]


def recognise(folder: Path) -> Flavour:
    """Which of the two code bases a folder is; a ConfigError names what is missing."""
    missing = [path for path in COMMON if not (folder / path).exists()]
    if missing:
        hint = f"; did you mean {folder.parent}?" if (folder.parent / COMMON[0]).is_file() else ""
        raise ConfigError(f"{folder} is no checkout of epymarl or pymarl2: {', '.join(missing)} missing{hint}")
    for flavour, files in OWN.items():
        if all((folder / path).is_file() for path in files):
            return flavour
    lacks = "; ".join(f"for {flavour} {', '.join(files)}" for flavour, files in OWN.items())
    raise ConfigError(f"{folder} is like epymarl and pymarl2, but is neither; missing are {lacks}")


def _without_line(text: bytes) -> bytes:
    """The file of the registry as it was before our line, of this or another version, came to its end."""
    lines = text.replace(BLOCK, b"").splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(CALL))
