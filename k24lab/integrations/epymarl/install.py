"""Into a checkout and out again: one line in `src/learners/__init__.py`, and files in `src/config/algs`."""

from pathlib import Path
from typing import NamedTuple

from k24lab.errors import ConfigError
from k24lab.integrations.epymarl.configs import Flavour, config_files, is_ours, is_untouched

# The learners are imported by whatever trains, and import neither agents nor controllers: one line there is enough.
REGISTRY_FILE = "src/learners/__init__.py"
CONFIG_FOLDER = "src/config/algs"
CALL = "from k24lab.integrations.epymarl import register; register()"
LINE = f"{CALL}  # k24lab; python -m k24lab.integrations.epymarl . --remove takes it out"
# What both have, and what tells them apart.
COMMON = (
    "src/main.py",
    REGISTRY_FILE,
    "src/controllers/__init__.py",
    "src/modules/agents/__init__.py",
    "src/modules/mixers/vdn.py",
    "src/modules/mixers/qmix.py",
    "src/components/action_selectors.py",
    "src/components/episode_buffer.py",
    "src/config/default.yaml",
)
OWN: dict[Flavour, tuple[str, ...]] = {
    "epymarl": ("src/components/standarize_stream.py",),
    "pymarl2": ("src/modules/mixers/nmix.py", "src/learners/nq_learner.py"),
}


class Change(NamedTuple):
    """What becomes of a file; None: it is not there."""

    path: Path
    before: bytes | None
    after: bytes | None


def recognise(folder: Path) -> Flavour:
    """Which of the two code bases a folder is.

    Raises:
        ConfigError: naming what is missing.
    """
    missing = [path for path in COMMON if not (folder / path).is_file()]
    if missing:
        hint = f"; did you mean {folder.parent}?" if (folder.parent / COMMON[0]).is_file() else ""
        raise ConfigError(f"{folder} is no checkout of epymarl or pymarl2: {', '.join(missing)} missing{hint}")
    for flavour, files in OWN.items():
        if all((folder / path).is_file() for path in files):
            return flavour
    lacks = "; ".join(f"for {flavour} {', '.join(files)}" for flavour, files in OWN.items())
    raise ConfigError(f"{folder} is like epymarl and pymarl2, but is neither; missing are {lacks}")


def integrate(folder: Path) -> list[str]:
    """Make `python src/main.py --config=k24_qmix ...` work in a checkout; twice is as once.

    Returns:
        What was done, a line each.

    Raises:
        ConfigError: if the folder is no checkout, or has other files of these names; then nothing is changed.
    """
    flavour = recognise(folder)
    changes, kept = [], []
    for name, text in config_files(flavour).items():
        path = folder / CONFIG_FOLDER / name
        before = path.read_bytes() if path.exists() else None
        if before is not None and not is_ours(before.decode(errors="replace")):
            raise ConfigError(f"{path} is there already and not from k24lab: move it away, nothing was changed")
        if before is not None and not is_untouched(before.decode(errors="replace")):
            kept.append(f"kept     {CONFIG_FOLDER}/{name}: edited since it was written")
        else:
            changes.append(Change(path, before, text.encode()))
    changes.append(_with_line(folder / REGISTRY_FILE))  # last: before it nothing of theirs is touched
    done = _apply(folder, changes)
    return [f"{flavour} in {folder}", *(done or ["unchanged: everything is in place"]), *kept]


def remove(folder: Path) -> list[str]:
    """Take everything out of a checkout again but configurations that were edited; returns what was done."""
    flavour = recognise(folder)
    changes, kept = [_without_line(folder / REGISTRY_FILE)], []
    for path in sorted((folder / CONFIG_FOLDER).glob("*.yaml")):
        before = path.read_bytes()
        text = before.decode(errors="replace")
        if is_untouched(text):
            changes.append(Change(path, before, None))
        elif is_ours(text):
            kept.append(f"kept     {path.relative_to(folder)}: edited since it was written")
    done = _apply(folder, changes)
    return [f"{flavour} in {folder}", *(done or ["unchanged: nothing of k24lab is there"]), *kept]


def _with_line(path: Path) -> Change:
    """The file of the registry with our line at its end."""
    before, rest = path.read_bytes(), _without_line(path).after or b""
    newline = b"\r\n" if b"\r\n" in rest else b"\n"
    ended = rest.endswith(b"\n")  # a file without a newline at its end ends without one again
    after = rest + LINE.encode() + newline if ended else rest + newline + LINE.encode()
    return Change(path, before, after)


def _without_line(path: Path) -> Change:
    """The file of the registry as it was before our line, in whatever wording, came to its end."""
    before = path.read_bytes()
    lines = before.splitlines(keepends=True)
    rest = b"".join(line for line in lines if not line.startswith(CALL.encode()))
    if lines and lines[-1].startswith(CALL.encode()) and not lines[-1].endswith(b"\n"):
        rest = rest.removesuffix(b"\n").removesuffix(b"\r")
    return Change(path, before, rest)


def _apply(folder: Path, changes: list[Change]) -> list[str]:
    """Make all changes or, where the disk refuses one, none; returns what was done."""
    due = [change for change in changes if change.before != change.after]
    made: list[Change] = []
    try:
        for change in due:
            _put(change.path, change.after)
            made.append(change)
    except OSError:
        for change in reversed(made):
            _put(change.path, change.before)
        raise
    return [f"{_verb(change)}  {change.path.relative_to(folder)}" for change in due]


def _put(path: Path, content: bytes | None) -> None:
    """Give a file its content, or remove it; never half of it."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    part = path.with_name(f".{path.name}.k24lab")
    try:
        part.write_bytes(content)
        if path.exists():
            part.chmod(path.stat().st_mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _verb(change: Change) -> str:
    if change.after is None:
        return "removed"
    return "changed" if change.before is not None else "written"
