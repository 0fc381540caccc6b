"""`pytest --nbmake .`: small runs for the notebooks to read, and a place of its own for all that they write."""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
HOME = CHECKOUT / "build" / "test"


def pytest_configure(config):
    """Train the group `ci` where it is missing, once, before any worker starts a notebook."""
    os.environ |= {"K24LAB_HOME": str(HOME), "K24LAB_FIGURES": str(HOME / "figures")}  # the kernels inherit them
    if hasattr(config, "workerinput") or config.option.collectonly or not config.getoption("nbmake", False):
        return
    grid = CHECKOUT / "notebooks" / "grids" / "ci.yaml"
    done = subprocess.run([sys.executable, "-m", "k24lab", "sweep", str(grid)])
    if done.returncode:
        raise SystemExit(done.returncode)
