"""The CPU kernels and the notebooks of a wheel; everything else is in pyproject.toml.

Without a C compiler torch does the work of the kernels.
"""

import copy
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

FOLDER = "k24lab/ops/csrc"
FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=fast", "-Wno-psabi", "-pthread"]
builds = {"k24lab.ops._k24": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    builds["k24lab.ops._k24_avx2"] = ["-march=x86-64-v3"]
    builds["k24lab.ops._k24_avx512"] = ["-march=x86-64-v4"]  # the same vectors, and registers for twice as many
SHIPPED = (
    "notebooks/*.ipynb",
    "notebooks/grids/*.yaml",
    "figures/speed/bench_inference.csv",
    "figures/gpu/*/teams.csv",
)


class BuildApart(build_ext):
    """Builds of the same sources at the same time, each with object files of its own."""

    def build_extension(self, ext):
        """One build, in a folder with its name."""
        own = copy.copy(self)
        own.build_temp = str(Path(self.build_temp, ext.name))
        build_ext.build_extension(own, ext)


class BuildWithNotebooks(build_py):
    """Copies notebooks, grids and measurements into the package: a checkout has them at its top, a wheel in k24lab/."""

    def run(self):
        """Build the package, then copy; an editable install reads those of its checkout."""
        super().run()
        for pattern in () if self.editable_mode else SHIPPED:
            for source in Path().glob(pattern):
                target = Path(self.build_lib, "k24lab", source)
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))


setup(
    cmdclass={"build_ext": BuildApart, "build_py": BuildWithNotebooks},
    options={"build_ext": {"parallel": len(builds)}},
    ext_modules=[
        Extension(
            name,
            [f"{FOLDER}/{part}.c" for part in ("matmul", "network", "masks", "act")],
            depends=[f"{FOLDER}/common.h", f"{FOLDER}/layers.h"],
            extra_compile_args=FLAGS + flags,
            extra_link_args=["-pthread"],
            optional=True,
        )
        for name, flags in builds.items()
    ],
)
