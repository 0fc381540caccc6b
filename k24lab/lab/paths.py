"""Where runs and figures live: from the library, never from the current folder of a notebook."""

import os
from pathlib import Path

HOME_VARIABLE = "K24LAB_HOME"
FIGURES_VARIABLE = "K24LAB_FIGURES"
CHECKOUT = Path(__file__).resolve().parents[2]  # of an editable install


def project_root() -> Path:
    """Absolute folder that holds `runs` and `figures`.

    The environment variable K24LAB_HOME if set and not empty; else the checkout that an editable install points to
    (the folder above the package, if it has a pyproject.toml); else the current folder.
    """
    if home := os.environ.get(HOME_VARIABLE):
        return Path(home).expanduser().resolve()
    return CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path.cwd()


def notebooks_dir() -> Path:
    """Folder of the notebooks: that of the project root, or where it has none that of the checkout."""
    own = project_root() / "notebooks"
    return own if own.is_dir() else CHECKOUT / "notebooks"


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
