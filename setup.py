"""The CPU kernels; everything else is in pyproject.toml. Without a C compiler torch does their work."""

import platform

from setuptools import Extension, setup

FOLDER = "k24lab/ops/csrc"
FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=fast", "-Wno-psabi"]
builds = {"k24lab.ops._k24": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    builds["k24lab.ops._k24_avx2"] = ["-march=x86-64-v3"]
    builds["k24lab.ops._k24_avx512"] = ["-march=x86-64-v4"]  # the same vectors, and registers for twice as many

setup(
    ext_modules=[
        Extension(
            name,
            [f"{FOLDER}/{part}.c" for part in ("matmul", "network", "masks", "act")],
            depends=[f"{FOLDER}/common.h", f"{FOLDER}/layers.h"],
            extra_compile_args=FLAGS + flags,
            optional=True,
        )
        for name, flags in builds.items()
    ]
)
