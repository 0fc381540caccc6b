"""Where runs and figures live: from the library, never from the current folder of a notebook."""

import os
from pathlib import Path

HOME_VARIABLE = "K24LAB_HOME"
FIGURES_VARIABLE = "K24LAB_FIGURES"
PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent  # of an editable install
# Holds notebooks/ and, of figures/, what notebooks read: a wheel has both inside the package, a checkout at its top.
SHIPPED = PACKAGE if (PACKAGE / "notebooks").is_dir() else CHECKOUT


def project_root() -> Path:
    """Absolute folder that holds `runs` and `figures`.

    The environment variable K24LAB_HOME if set and not empty; else the checkout that an editable install points to
    (the folder above the package, if it has a pyproject.toml); else the current folder.
    """
    if home := os.environ.get(HOME_VARIABLE):
        return Path(home).expanduser().resolve()
    return CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path.cwd()


def notebook_folders() -> tuple[Path, ...]:
    """Where notebooks are looked for: in the project root, which may have some of its own, then in the package."""
    return project_root() / "notebooks", SHIPPED / "notebooks"


def runs_dir() -> Path:
    """Folder of all run groups, `runs/<group>/<run_id>/`; it may not exist yet."""
    return project_root() / "runs"


def figures_dir() -> Path:
    """Folder of all figures (PDF, PNG and CSV of one name); it may not exist yet.

    The environment variable K24LAB_FIGURES if set and not empty; else `figures` of the project root. In a checkout that
    folder holds the published results, which nothing but `make results` shall replace: there it is `output`.
    """
    if folder := os.environ.get(FIGURES_VARIABLE):
        return Path(folder).expanduser().resolve()
    root = project_root()
    return root / ("output" if root == CHECKOUT else "figures")
