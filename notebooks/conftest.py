"""`pytest --nbmake .`: small runs for the notebooks to read, and a place of its own for all that they write."""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
HOME = CHECKOUT / "build" / "test"
GRID = CHECKOUT / "notebooks" / "grids" / "ci.yaml"
# One process for all: most of the time of a process goes into loading torch.
TRAIN = """
import sys
from pathlib import Path
from k24lab.lab.grid import load_grid
from k24lab.lab.train import train
grid = load_grid(Path(sys.argv[1]))
for config in grid.configs:
    train(config, grid.name, progress=False)
"""


def pytest_configure(config):
    """Train the group `ci` where it is missing, once, before any worker starts a notebook."""
    os.environ |= {"K24LAB_HOME": str(HOME), "K24LAB_FIGURES": str(HOME / "figures")}  # the kernels inherit them
    if hasattr(config, "workerinput") or config.option.collectonly or not config.getoption("nbmake", False):
        return
    done = subprocess.run([sys.executable, "-c", TRAIN, str(GRID)])
    if done.returncode:
        raise SystemExit(done.returncode)
