import contextlib
import itertools
import json
import re
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import TINY

from k24lab import cli
from k24lab.lab.config import build_config
from k24lab.lab.runs import read_config, run_folder
from k24lab.lab.train import Trainer, train
from k24lab.lab.unused_settings import _log_once

FLAGS = list(
    itertools.chain.from_iterable(
        (f"--{key.replace('_', '-')}", str(value)) for key, value in (TINY | {"t_max": 400}).items()
    )
)


@pytest.fixture
def k24lab(monkeypatch, capsys):
    """Call the command line in this process: exit code, standard output, standard error."""

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["k24lab", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


def assert_one_line_error(result, *parts):
    code, _, err = result
    assert code == 2
    assert re.fullmatch(r"k24lab: error: [^\n]+\n", err), err
    assert all(part in err for part in parts), err


def test_train_makes_the_run_that_its_flags_describe_and_prints_its_folder(k24lab):
    code, out, _ = k24lab("train", "--method", "fups-id", "--seed", 3, "--name", "mine", "--quiet", *FLAGS)
    config = build_config(TINY | {"t_max": 400, "method": "fups-id", "seed": 3})
    assert code == 0
    folder = run_folder(config, "mine")
    assert out == f"{folder}\n"
    assert (folder / "DONE").exists() and read_config(folder) == config


def test_train_shows_a_progress_bar_unless_quiet(k24lab, caplog):
    _log_once.cache_clear()
    *_, err = k24lab("train", "--method", "fups", *FLAGS)
    assert "fups, rolenav, seed 0" in err and "100%" in err
    assert "k24lab: note: reset_interval, reset_trigger: of no effect in this run\n" in err
    assert err.count("of no effect") == 1 and caplog.messages == []
    *_, err = k24lab("train", "--method", "fups", "--seed", 1, "--quiet", *FLAGS)
    assert err == "" and caplog.messages == []


def test_resume_finishes_an_interrupted_run(k24lab, monkeypatch):
    original = Trainer._iteration

    def iteration(self):
        original(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_iteration", iteration)
        code, _, err = k24lab("train", "--method", "fups", "--quiet", *FLAGS)
    assert code == 130
    assert err == "k24lab: interrupted; the same command goes on from the last checkpoint\n"
    folder = run_folder(build_config(TINY | {"t_max": 400, "method": "fups"}), "default")
    assert not (folder / "DONE").exists()
    code, out, _ = k24lab("resume", folder, "--quiet")
    assert (code, out) == (0, f"{folder}\n")
    assert (folder / "DONE").exists()


def test_sweep_trains_every_run_of_a_grid(k24lab, tmp_path):
    common = TINY | {"t_max": 200, "method": "fups"}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"name": "g", "common": common, "grids": [{"seed": [4]}]}))
    code, *_ = k24lab("sweep", tmp_path / "grid.yaml", "--jobs", 1)
    assert code == 0
    assert (run_folder(build_config(common | {"seed": 4}), "g") / "DONE").exists()


def test_export_writes_the_results_of_groups(k24lab, tiny_config, tmp_path):
    for name in ("one", "two"):
        train(tiny_config(method="fups", t_max=400, seed=len(name) + (name == "two")), name, progress=False)
    code, out, _ = k24lab("export", "one", "two", "--output", tmp_path / "x.json")
    assert (code, out) == (0, f"{tmp_path / 'x.json'}\n")
    assert json.loads((tmp_path / "x.json").read_text())["rolenav"]["rolenav"]["fups"].keys() == {"seed_3", "seed_4"}
    k24lab("export", "one", "two", "one", "--output", tmp_path / "new" / "x.json")
    assert (tmp_path / "new" / "x.json").read_bytes() == (tmp_path / "x.json").read_bytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_sweep_on_this_machine_refuses_a_device_that_it_lacks(k24lab, tmp_path, home):
    (tmp_path / "grid.yaml").write_text("grids: [{device: ['cuda:1', cpu]}]")
    assert_one_line_error(k24lab("sweep", tmp_path / "grid.yaml"), "device = 'cuda:1', but torch finds no CUDA devices")
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--jobs", "0"], "jobs = 0 must be at least 1"),
        (["--memory-gb", "0"], "memory_gb = 0.0 must be above 0"),
        (["--hours", "-1"], "hours = -1.0 must be above 0"),
        (["--options", "partition", "x"], "mean nothing to the backend 'local'"),
        (["--backend", "slurm", "--gpus", "0.5"], "gpus = 0.5 of a SLURM job must be a whole number"),
    ],
)
def test_sweep_refuses_resources_that_mean_nothing(args, part, k24lab, tmp_path, home):
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"grids": [{"seed": [4]}]}))
    assert_one_line_error(k24lab("sweep", tmp_path / "grid.yaml", *args), part)
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["train", "--hidden-dim", "0"], ["hidden_dim = 0 must be above 0"]),
        (["train", "--lr", "-1", "--gamma", "2"], ["lr = -1.0", "gamma = 2.0"]),
        (["train", "--lr", "nan"], ["lr = nan"]),
        (["train", "--logit-scale", "inf"], ["logit_scale = inf is not a finite number"]),
        (["train", "--task", "rolenv"], ["unknown task 'rolenv'", "did you mean 'rolenav'"]),
        (["train", "--name", "a/b"], ["name = 'a/b'"]),
        (["resume", "nowhere"], ["no run 'nowhere': no folder"]),
        (["sweep", "nowhere.yaml"], ["no grid file nowhere.yaml"]),
        (["figures"], ["no finished run in "]),
        (["figures", "nothing"], ["no runs in "]),
        (["export", "nothing", "--output", "x.json"], ["no runs in "]),
        (["status", "nothing"], ["no runs in ", "nor in any other group"]),
        (["export", "--output", "x.json"], ["name at least one group"]),
        (["bench", "tarin"], ["unknown benchmark 'tarin'; did you mean 'train'"]),
    ],
)
def test_mistake_is_one_line_on_standard_error_and_exit_code_2(args, parts, k24lab, home):
    assert_one_line_error(k24lab(*args), *parts)
    assert not (home / "runs").exists()


@pytest.mark.parametrize("command", [["train", "--quiet"], ["sweep"]])
def test_disk_that_takes_nothing_is_one_line(command, k24lab, home, tmp_path):
    (home / "runs").write_text("a file where a folder should be")
    grid = tmp_path / "grid.yaml"
    grid.write_text("grids: [{seed: 0}]")
    assert_one_line_error(k24lab(*command, *([str(grid)] if command == ["sweep"] else [])), str(home / "runs"))


def test_other_errors_of_the_system_keep_their_traceback(k24lab, monkeypatch):
    monkeypatch.setattr("k24lab.lab.status.print_status", lambda *_: (_ for _ in ()).throw(ConnectionResetError()))
    with pytest.raises(ConnectionResetError):
        k24lab("status", "nothing")


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["train", "--hiden-dim", "3"], "--hidden-dim"),
        (["train", "--hidden-dim", "x"], "--hidden-dim"),
        (["train", "--method", "k42"], "k24-alpha"),
        (["frain"], "train"),
        ([], "train"),
    ],
)
def test_flag_that_cannot_be_parsed_is_exit_code_2_and_says_what_is_allowed(args, part, k24lab, home):
    code, out, err = k24lab(*args)
    assert code == 2 and part in out + err
    assert not (home / "runs").exists()


@pytest.mark.parametrize("command", ["train", "resume", "sweep", "status", "figures", "export", "bench"])
def test_help_of_every_command_has_an_example(command, k24lab):
    code, out, _ = k24lab(command, "--help")
    assert code == 0 and f"Example: k24lab {command}" in " ".join(out.split())
    code, out, _ = k24lab("--help")
    assert code == 0 and command in out


def shown_default(text, flag):
    return re.search(rf"--{flag} (?:FLOAT|{{).*?\(default:\s+([^)]*)\)", text, re.DOTALL).group(1)


@pytest.mark.parametrize("spelling", [["--method", "k24-literal"], ["--method=k24-literal"]])
def test_help_shows_the_defaults_of_the_method_asked_for(spelling, k24lab):
    _, plain, _ = k24lab("train", "--help")
    _, literal, _ = k24lab("train", *spelling, "--help")
    text = [re.sub(r"[│\s]+", " ", t) for t in (plain, literal)]
    assert [shown_default(t, "noise") for t in text] == ["annealed", "literal"]
    assert [shown_default(t, "hetero-init-scale") for t in text] == ["2.0", "0.01"]
    assert [shown_default(t, "method") for t in text] == ["k24", "k24-literal"]


def test_help_explains_the_fields(k24lab):
    _, out, _ = k24lab("train", "--help")
    text = re.sub(r"[│\s]+", " ", out)
    assert "append a one-hot agent index" in text
    assert "share of t_max" in text


def test_each_option_has_a_help_text_of_its_own_or_none(k24lab, monkeypatch):
    """The parser gives the comment above a setting to the settings below it that have none."""
    monkeypatch.setattr(cli, "only_used_settings", lambda _: contextlib.nullcontext())
    text = re.sub(r"(?:[│╭╮╰╯─\s]|---+)+", " ", k24lab("train", "--help")[1])
    options = re.findall(r"--([a-z0-9-]+)(?:, --no-[a-z0-9-]+| \S+) ((?:(?! --).)*?) ?\(default:", text)
    assert {name.replace("-", "_") for name, _ in options} == {"name", "quiet", *vars(build_config())}
    sharing: dict[str, list[str]] = {}
    for name, words in options:
        sharing.setdefault(words, []).append(name)
    assert [names for words, names in sharing.items() if words and len(names) > 1] == [["target-masks", "acting-masks"]]


def test_help_leaves_out_what_the_method_does_not_use(k24lab):
    of = {method: k24lab("train", "--method", method, "--help")[1] for method in ("fups", "kaleidoscope", "k24")}
    assert "--logit-scale" in of["k24"]
    assert "--logit-scale" not in of["fups"] + of["kaleidoscope"]
    assert "--reset-interval" in of["kaleidoscope"] and "--reset-interval" not in of["fups"]
    assert all("--lr " in text for text in of.values())


def test_package_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "k24lab", "resume", "nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("k24lab: error: no run 'nowhere': no folder")
    assert "Traceback" not in done.stderr
