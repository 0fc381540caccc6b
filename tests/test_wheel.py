"""What a wheel and an sdist hold, and that the package works from a wheel, outside the repository, without a compiler.

`make test-wheel` installs the wheel into an empty environment and runs it; here nothing is downloaded.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes

import pytest

from k24lab import __version__
from k24lab.lab.paths import CHECKOUT

BUILD = "from setuptools.build_meta import {function} as build; build({folder!r})"
BESIDE = "setup.py pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md CITATION.cff requirements.lock".split()

NOT_READ = {".c", ".h", ".md", ".pyc", ".so"}


def build(function, source, folder):
    """Call the build backend in a folder with sources, without a compiler; returns the file that it made."""
    folder.mkdir()
    code = BUILD.format(function=function, folder=str(folder))
    environment = os.environ | {"CC": "/bin/false"}
    done = subprocess.run([sys.executable, "-c", code], cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """An sdist of this checkout, and a wheel that is built from it."""
    folder = tmp_path_factory.mktemp("wheel")
    no_builds = shutil.ignore_patterns("__pycache__", "*.so", ".ipynb_checkpoints")
    for name in ("k24lab", "notebooks", "figures/speed", "tests"):
        shutil.copytree(CHECKOUT / name, folder / "source" / name, ignore=no_builds)
    for name in BESIDE:
        shutil.copy(CHECKOUT / name, folder / "source")
    sdist = build("build_sdist", folder / "source", folder / "sdist")
    shutil.unpack_archive(sdist, folder / "unpacked")  # tarfile's filters are younger than Debian 12's Python 3.11.2
    (unpacked,) = (folder / "unpacked").iterdir()
    return sdist, build("build_wheel", unpacked, folder / "wheel")


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """The files of the wheel, in a folder that stands for site-packages."""
    folder = tmp_path_factory.mktemp("installed") / "site-packages"
    with zipfile.ZipFile(archives[1]) as wheel:
        wheel.extractall(folder)
    return folder


def relative(paths, folder):
    return {path.relative_to(folder).as_posix() for path in paths}


def test_a_wheel_has_every_file_that_the_package_reads(installed):
    source = CHECKOUT / "k24lab"
    wanted = relative((path for path in source.rglob("*.*") if path.suffix not in NOT_READ), source)
    patterns = (
        "notebooks/*.ipynb",
        "notebooks/grids/*.yaml",
        "figures/speed/bench_inference.csv",
        "figures/gpu/*/teams.csv",
    )
    shipped = [path for pattern in patterns for path in CHECKOUT.glob(pattern)]
    wanted |= relative(shipped, CHECKOUT)
    found = relative((path for path in (installed / "k24lab").rglob("*") if path.is_file()), installed / "k24lab")
    assert wanted - found == set() and {path for path in found - wanted if path.endswith((".py", ".so"))} == set()
    assert {path.name for path in installed.iterdir()} == {"k24lab", f"k24lab-{__version__}.dist-info"}


def test_the_core_needs_neither_jupyter_nor_pettingzoo(installed):
    about = message_from_bytes((installed / f"k24lab-{__version__}.dist-info" / "METADATA").read_bytes())
    assert about["Version"] == __version__
    others = ("jupyter", "ipykernel", "ipywidgets", "papermill", "pettingzoo", "mpe2")
    core = [line for line in about.get_all("Requires-Dist") if "extra ==" not in line]
    assert any(line.startswith("torch") for line in core)
    assert not [line for line in core if any(word in line for word in others)]
    assert {"notebooks", "mpe", "vmas", "wandb"} <= set(about.get_all("Provides-Extra"))


def test_an_sdist_has_what_a_wheel_is_built_from_and_no_tests(archives):
    with tarfile.open(archives[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"k24lab/ops/csrc/common.h", "k24lab/ops/csrc/matmul.c", "notebooks/grids/demo.yaml"} <= names
    assert not [name for name in names if name.startswith("tests")]


OUTSIDE = """
import sys
from pathlib import Path
import k24lab
from k24lab.bench.inference import measurements
from k24lab.inference.freeze import load_team
from k24lab.lab.grid import load_grid
from k24lab.lab.notebooks import copy_notebooks, notebook_path
from k24lab.lab.paths import figures_dir, project_root, runs_dir
from k24lab.ops.library import describe

here, package = Path.cwd(), Path(k24lab.__file__).parent
assert package == Path(sys.argv[1]) / "k24lab", package
assert (project_root(), runs_dir(), figures_dir()) == (here, here / "runs", here / "figures")
assert notebook_path("01_masks") == package / "notebooks" / "01_masks.ipynb"
(here / "notebooks").mkdir()
(here / "notebooks" / "mine.ipynb").touch()
assert notebook_path("mine").parent == here / "notebooks" and notebook_path("02_train").parent.parent == package
assert len(load_grid(Path("demo")).configs) == 12
copy_notebooks(here / "copy")
assert (here / "copy" / "grids" / "demo.yaml").is_file() and (here / "copy" / "05_ablations.ipynb").is_file()
assert measurements()[0] is not None
assert load_team("rolenav8").n_agents == 8
print(describe())
"""


def test_the_package_works_from_a_wheel_in_any_folder(installed, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("K24LAB_")} | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", OUTSIDE, str(installed)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["torch"]), done.stderr[-2000:]


def test_an_error_without_the_extra_of_notebooks_is_one_line(installed, tmp_path):
    code = "import sys; sys.modules['papermill'] = None; from k24lab.cli import main; main()"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("K24LAB_")} | {"PYTHONPATH": str(installed)}
    for command in (["notebooks"], ["notebooks", "01_masks"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "pip install 'k24lab[notebooks]'" in done.stderr
    assert list(tmp_path.iterdir()) == []
