"""One lock for conda and pip, and a pyproject.toml that it satisfies."""

import re
import subprocess
import tomllib
from importlib.metadata import metadata, version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from k24lab import __version__
from k24lab.envs.smacv2 import INSTALL
from k24lab.lab.paths import project_root

ROOT = project_root()


def _lock(name):
    """Requirements of a lock file by the names of their packages."""
    lines = (ROOT / name).read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name.lower().replace("_", "-"): requirement for requirement in wanted}


LOCK = _lock("requirements.lock")
SMACV2_LOCK = _lock("requirements-smacv2.lock")
DOCS_LOCK = _lock("requirements-docs.lock")  # beside the first one
BENCHMARL_LOCK = _lock("requirements-benchmarl.lock")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_conda_environment_installs_the_lock_and_the_package():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "k24lab" and environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip == {"pip": ["-r requirements.lock", "-e .[dev]"]}


def test_environment_of_smacv2_installs_its_own_lock_and_the_pinned_commit():
    environment = yaml.safe_load((ROOT / "environment-smacv2.yml").read_text())
    assert environment["name"] == "k24lab-smacv2" and environment["dependencies"][:2] == ["python=3.11", "pip"]
    lock, package, ours = environment["dependencies"][2]["pip"]
    assert lock == "-r requirements-smacv2.lock" and ours == "-e .[dev,smacv2]"
    assert re.fullmatch(r"SMACv2 @ git\+https://github.com/oxwhirl/smacv2@[0-9a-f]{40}", package)
    assert package.split("@")[-1].startswith(INSTALL.rstrip("'").split("@")[-1])  # what `k24lab doctor` prints


def test_the_lock_of_the_documentation_only_adds_to_the_other():
    assert not DOCS_LOCK.keys() & LOCK.keys()


def test_locks_differ_only_where_smacv2_demands_it():
    needs_protobuf = {"protobuf", "tensorboard", "onnx", "onnxruntime", "flatbuffers", "ml-dtypes"}
    for name, requirement in LOCK.items():
        if name not in needs_protobuf:
            assert SMACV2_LOCK[name] == requirement
    assert Requirement("protobuf<3.21").specifier.contains(str(SMACV2_LOCK["protobuf"].specifier)[2:])


@pytest.mark.parametrize(
    ("lock", "without"),
    [
        (LOCK, {"benchmarl", "browser", "docs", "ray", "smax", "smacv2", "video", "wandb"}),
        (SMACV2_LOCK, {"benchmarl", "browser", "docs", "ray", "smax", "onnx", "video", "wandb"}),
        (LOCK | DOCS_LOCK, {"benchmarl", "browser", "ray", "smax", "smacv2", "video", "wandb"}),
        (BENCHMARL_LOCK, {"browser", "docs", "ray", "smax", "smacv2", "onnx", "video", "wandb"}),
    ],
)
def test_lock_names_one_exact_version_of_everything_we_depend_on(lock, without):
    assert all(re.fullmatch(r"==[\w.]+", str(requirement.specifier)) for requirement in lock.values())
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [r for name, extra in extras.items() if name not in without for r in extra]
    for requirement in map(Requirement, wanted):
        if requirement.name != "k24lab":
            pinned = str(lock[requirement.name.lower()].specifier).removeprefix("==")
            assert requirement.specifier.contains(pinned), f"{requirement} against {pinned}"


def test_smax_pins_its_own_versions():
    # Half a gigabyte that only its users want, and so outside the locks.
    assert all(
        str(Requirement(r).specifier).startswith("==") for r in PYPROJECT["project"]["optional-dependencies"]["smax"]
    )


def test_the_lock_installs_on_the_python_of_debian_12():
    for name in LOCK:
        needed = metadata(name)["Requires-Python"] or ""
        assert SpecifierSet(needed).contains("3.11.2"), f"{name} needs Python {needed}"


def test_the_lock_is_what_runs_here():
    for name in ("torch", "numpy", "pandas", "papermill", "mpe2"):
        assert version(name).split("+")[0] == str(LOCK[name].specifier).removeprefix("==")


def test_version_is_the_same_everywhere():
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "k24lab.__version__"}
    assert __version__ == yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_make_lists_its_two_commands():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"demo", "test"} <= {line.split()[0] for line in listed.splitlines()}
