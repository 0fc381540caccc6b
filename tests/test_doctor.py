"""The table of optional parts: what is there, what is missing, how to fix it, and the exit code."""

import importlib.metadata
import subprocess
import sys

import fake_starcraft
import pytest
import torch

from k24lab.errors import ConfigError
from k24lab.lab import doctor as module
from k24lab.lab.doctor import PARTS, Check, doctor, package, table


def line_of(text: str, part: str) -> str:
    (line,) = [line for line in text.splitlines() if line.split()[1:2] == [part]]
    return line


@pytest.fixture
def parts(monkeypatch):
    """Two parts, one of them broken."""
    made = {"whole": lambda: [Check("a", "1.0")], "broken": lambda: [Check("bb", "2"), Check("c", None, "get c")]}
    monkeypatch.setattr(module, "PARTS", made)


def test_only_a_part_that_is_asked_for_by_name_makes_it_fail(parts, capsys):
    assert doctor() == 0
    everything = capsys.readouterr().out
    assert doctor(["whole"]) == 0 and doctor(["broken"]) == 1 and doctor(["whole", "broken"]) == 1
    assert everything.split() == "whole ok a 1.0 broken ok bb 2 missing c -> get c".split()
    with pytest.raises(ConfigError, match="unknown part 'brokn'; did you mean 'broken'"):
        doctor(["brokn"])


def test_each_missing_line_is_followed_by_its_remedy():
    lines = table({"x": [Check("long name", "7"), Check("b", None, "pip install b")]}).splitlines()
    assert lines[0] == "x" and lines[1].split() == ["ok", "long", "name", "7"]
    assert lines[2].split() == ["missing", "b"] and lines[3].split() == "-> pip install b".split()
    assert lines[1].index("7") == lines[3].index("->")  # columns


def test_a_package_is_looked_up_and_not_imported():
    assert package("numpy", "").found == importlib.metadata.version("numpy")
    assert package("no-such-package-24", "pip install it") == Check("no-such-package-24", None, "pip install it")
    code = "import sys; from k24lab.lab.doctor import PARTS; "
    code += "[PARTS[part]() for part in ('vmas', 'smax', 'smacv2', 'tensorboard')]"
    code += "; assert not {'vmas', 'jax', 'smacv2', 'pysc2', 'tensorboard', 'google.protobuf'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_gpu_and_its_2_4_kernels(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor(["cuda"]) == 1 and doctor(["torch"]) == 0
    assert torch.__version__.split("+")[0] in line_of(capsys.readouterr().out, "torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A card")
    for capability, code in (((7, 5), 1), ((8, 0), 0), ((12, 0), 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert doctor(["cuda"]) == code
        assert f"A card, compute capability {capability[0]}.{capability[1]}" in capsys.readouterr().out


def test_the_game_of_smacv2(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SC2PATH", str(tmp_path / "game"))
    assert doctor(["smacv2"]) == 1
    assert f"no folder {tmp_path / 'game'} (set SC2PATH)" in capsys.readouterr().out
    fake_starcraft.install(tmp_path / "game")
    (tmp_path / "game/Maps/SMAC_Maps/32x32_flat.SC2Map").unlink()
    doctor(["smacv2"])
    assert f"no map {tmp_path / 'game/Maps/SMAC_Maps/32x32_flat.SC2Map'}" in capsys.readouterr().out


def test_every_part_can_be_checked_here(capsys):
    assert doctor() == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if not line.startswith(" ")] == list(PARTS)
