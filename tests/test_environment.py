"""One lock for conda and pip, and a pyproject.toml that it satisfies."""

import re
import subprocess
import tomllib
from importlib.metadata import version

import yaml
from packaging.requirements import Requirement

from k24lab import __version__
from k24lab.paths import project_root

ROOT = project_root()
LOCK = {
    requirement.name.lower().replace("_", "-"): requirement
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line and not line.startswith("#")
    for requirement in [Requirement(line)]
}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_conda_environment_installs_the_lock_and_the_package():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "k24lab" and environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip == {"pip": ["-r requirements.lock", "-e .[dev]"]}


def test_lock_names_one_exact_version_of_everything_we_depend_on():
    assert all(re.fullmatch(r"==[\w.]+", str(requirement.specifier)) for requirement in LOCK.values())
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [r for name, extra in extras.items() if name != "smax" for r in extra]
    # Half a gigabyte that only its users want, and so outside the lock: it pins its own versions.
    assert all(str(Requirement(r).specifier).startswith("==") for r in extras["smax"])
    for requirement in map(Requirement, wanted):
        if requirement.name != "k24lab":
            pinned = str(LOCK[requirement.name.lower()].specifier).removeprefix("==")
            assert requirement.specifier.contains(pinned), f"{requirement} against {pinned}"


def test_the_lock_is_what_runs_here():
    for name in ("torch", "numpy", "pandas", "papermill", "mpe2"):
        assert version(name).split("+")[0] == str(LOCK[name].specifier).removeprefix("==")


def test_version_is_the_same_everywhere():
    assert (
        PYPROJECT["project"]["version"] == __version__ == yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    )


def test_make_lists_its_two_commands():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"demo", "test"} <= {line.split()[0] for line in listed.splitlines()}
