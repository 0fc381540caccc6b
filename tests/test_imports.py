"""What must not be loaded: readers of runs work where torch is not installed, and start without waiting for it."""

import subprocess
import sys

LOAD_ALL = """
import importlib, pkgutil, sys
import k24lab.analysis
for module in pkgutil.iter_modules(k24lab.analysis.__path__):
    importlib.import_module(f"k24lab.analysis.{module.name}")
    if found := {"torch", "jax", "papermill"} & sys.modules.keys():
        sys.exit(f"k24lab.analysis.{module.name} loads {', '.join(found)}")
print(len([name for name in sys.modules if name.startswith("k24lab.analysis.")]))
"""


def test_analysis_loads_no_torch():
    done = subprocess.run([sys.executable, "-c", LOAD_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8  # modules that were looked at
