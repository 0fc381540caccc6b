"""Every command of README and docs/, in a fresh clone: none fails, and none changes a file that git (would) track.

`COMMANDS` has an entry for each: None runs it as it stands, a text is the same command with small sizes, and a `Not`
says why it does not run here. A command without an entry fails.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import TINY

from k24lab.lab.config import build_config
from k24lab.lab.paths import CHECKOUT
from k24lab.lab.train import train

README = (CHECKOUT / "README.md").read_text()
# Those of these pages train for hours; tests/test_docs.py checks that their grids and notebooks exist.
LONG = ("results.md", "first_studies.md", "ablations.md")
PAGES = [path for path in sorted((CHECKOUT / "docs").glob("*.md")) if path.name not in LONG]
TEXT = README + "".join(path.read_text() for path in PAGES)
BLOCKS = [block.replace("\\\n", " ") for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)]
SNIPPETS = {
    page: re.findall(r"```python\n(.*?)```", (CHECKOUT / page).read_text(), re.DOTALL)
    for page in ("README.md", "docs/inference.md", "docs/layer.md")
}

SMALL = TINY | {"snapshot_interval": 800, "test_interval": 800, "t_max": 1600}
FLAGS = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in SMALL.items() if not k.startswith("reset"))
OVERRIDES = "{overrides: {n_envs: 8, batch_size: 8, test_episodes: 8, updates_per_rollout: 1}}"
RUN8 = "rolenav_n_agents_8-k24-s0-"


class Not(str):
    """Why a command does not run here."""


COMMANDS = {
    "make setup": "make -n setup",
    ". .venv/bin/activate": Not("activates the environment that tests run in"),
    "k24lab train --task rolenav --method k24 --name first": (
        f"k24lab train --task rolenav --method k24 --name first {FLAGS}"
    ),
    "k24lab replay --team rolenav8": "k24lab replay --team rolenav8 --episodes 1",
    "k24lab report first": None,
    "k24lab replay runs/first/rolenav-k24-s0-…": "k24lab replay runs/first/rolenav-k24-s0-… --episodes 1",
    "make demo": "make -n demo && k24lab notebooks 05_ablations --runs demo",
    "make test": "make -n test",
    "conda env create -f environment.yml && conda activate k24lab": Not("downloads the environment that tests run in"),
    "jupyter lab notebooks": Not("a server that waits for a browser: make test-browser opens every notebook in it"),
    "cd notebooks": None,
    "mkdir -p ../executed": None,
    "papermill 02_train.ipynb ../executed/out.ipynb -p task mpe2/simple_spread -p method k24 -p mixer qmix -p seed 1": (
        "papermill 02_train.ipynb ../executed/out.ipynb -p task mpe2/simple_spread -p method k24 -p mixer qmix "
        f"-p seed 1 -p t_max 800 -p hidden_dim 16 -y '{OVERRIDES}'"
    ),
    "papermill 05_ablations.ipynb ../executed/ablations.ipynb -p runs demo": Not("make demo runs it"),
    "pytest --nbmake -n 2 .": "pytest --nbmake -q --collect-only .",  # make test runs it in full
    "k24lab train --task rolenav:n_agents=8 --method k24 --seed 0": (
        f"k24lab train --task rolenav:n_agents=8 --method k24 --seed 0 {FLAGS}"
    ),
    f"k24lab resume runs/default/{RUN8}…": None,
    "k24lab sweep notebooks/grids/rolenav3.yaml --jobs 2": "k24lab sweep build/rolenav3.yaml --jobs 2",
    "k24lab status notebooks/grids/rolenav3.yaml": None,
    f"k24lab show {RUN8}…": None,
    "k24lab report rolenav3": None,
    f"k24lab replay {RUN8}…": f"k24lab replay {RUN8}… --episodes 1",
    "k24lab notebooks --copy my_notebooks": "k24lab notebooks --copy build/my_notebooks",
    "k24lab notebooks 03_mask_patterns 05_ablations --runs rolenav3": (
        "k24lab notebooks 03_mask_patterns --runs rolenav3"  # make demo runs the other one
    ),
    "k24lab figures rolenav3 vmas_dispersion vmas_het_mass": Not("the next line runs the same notebooks"),
    "k24lab figures mine --variant random24 --name ours": "k24lab figures mine --variant fups --name ours",
    "k24lab export rolenav3 --output output/rolenav3.json": None,
    # Small runs have the name rolenav3 here.
    "k24lab import figures/rolenav3/05_ablations_runs.jsonl --name rolenav3": (
        "k24lab import figures/rolenav3/05_ablations_runs.jsonl --name imported"
    ),
    "k24lab export runs/rolenav3/rolenav-k24-s0-… --format onnx --output output/team.onnx": None,
    "k24lab bench train": Not("takes most of a minute at its smallest: tests/test_bench_train.py runs its parts"),
    "k24lab bench inference": Not("takes minutes: tests/test_bench_inference.py runs its parts"),
    "k24lab bench inference --rounds 15": Not("the same for longer"),
    "k24lab notebooks 06_ampere_speedup --runs rolenav8": Not("needs trained runs: notebooks/ has it with small ones"),
    "python -m benchmarks.peers --peer benchmarl=PYTHON --peer epymarl=CHECKOUT --peer kaleidoscope=CHECKOUT "
    "--peer jaxmarl=PYTHON --peer jaxmarl=CHECKOUT": Not("takes many minutes: tests/test_peers.py runs its parts"),
    "python -m benchmarks.scaling": Not("takes minutes: tests/test_scaling.py runs its parts"),
    "k24lab sweep notebooks/grids/pipeline.yaml": Not("trains for an hour: tests/test_pipeline.py has short runs"),
    "k24lab notebooks 05_ablations --runs pipeline": Not("needs the line before"),
    "python docs/tools/generate_results.py": "python docs/tools/generate_results.py --check",
    "make gpu": "make -n gpu",
    "k24lab doctor": None,
    "k24lab doctor --task pettingzoo/my_module:my_env": "k24lab doctor --task pettingzoo/mpe2.simple_spread_v3",
    "k24lab export RUN --format onnx --agent 0 --dtype float16 --output output/agent.onnx": (
        "k24lab export rolenav-k24-s0-… --format onnx --agent 0 --dtype float16 --output output/agent.onnx"
    ),
    "trtexec --onnx=output/agent.onnx --fp16 --sparsity=enable --verbose --saveEngine=output/agent.plan "
    "--minShapes=obs:1x18,hidden:1x64 --optShapes=obs:256x18,hidden:256x64 --maxShapes=obs:4096x18,hidden:4096x64": (
        Not("needs TensorRT and a GPU")
    ),
    "python -m k24lab.integrations.epymarl path/to/epymarl": (
        Not("needs a checkout of epymarl: tests/test_integration_epymarl.py runs it in one of the tests' own")
    ),
    "cd path/to/epymarl": Not("as the line before"),
    "python src/main.py --config=k24_qmix --env-config=gymma with env_args.time_limit=25 "
    'env_args.key="lbforaging:Foraging-8x8-2p-3f-v3"': Not("as the line before"),
    "pip install -e '.[benchmarl]' vmas==1.5.2": Not("make test-benchmarl installs it in an environment of its own"),
    "python examples/benchmarl_navigation.py run": Not(
        "trains for an hour: tests/test_integration_benchmarl.py builds it"
    ),
    "python examples/benchmarl_navigation.py show": Not("tests/test_docs.py compares what it prints with the page"),
}


def commands(block):
    """The commands of a block, without comments and extra spaces."""
    lines = [" ".join(re.sub(r"\s{2,}#.*$", "", line).split()) for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone of this checkout as it stands, uncommitted changes included."""
    if not (CHECKOUT / ".git").exists():
        pytest.skip("no git repository")
    folder = tmp_path_factory.mktemp("clone") / "k24lab"
    git(".", "clone", "--quiet", "--no-hardlinks", "--depth=1", f"file://{CHECKOUT}", folder)
    for name in git(CHECKOUT, "ls-files", "-m", "-o", "--exclude-standard", "-z").split("\0"):
        source, target = CHECKOUT / name, folder / name
        if name and source.is_file() and not source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        elif name and not source.exists():
            target.unlink()
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "as it stands")
    return folder


def git(folder, *command):
    return subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(clone, monkeypatch):
    """The clone, without the runs and drawings of other tests."""
    for name in ("runs", "output", "executed", "build"):
        shutil.rmtree(clone / name, ignore_errors=True)
    (clone / "build").mkdir()
    monkeypatch.setenv("K24LAB_HOME", str(clone))
    return clone


def small_runs(group, *methods):
    """Make a group of tiny runs."""
    return [train(build_config(SMALL | {"method": method}), group, progress=False) for method in methods]


def run_block(block, checkout):
    """Run the commands of a block in one shell, as a user would, and look at what they leave."""
    wanted = [COMMANDS[command] or command for command in commands(block) if not isinstance(COMMANDS[command], Not)]
    # The beginning of a run's name will do; that of a path is completed by the shell.
    script = "\n".join(re.sub(r"(\S+)…", lambda m: m[1] + ("*" if "/" in m[1] else ""), line) for line in wanted)
    environment = {k: v for k, v in os.environ.items() if k not in ("K24LAB_HOME", "K24LAB_FIGURES", "VIRTUAL_ENV")}
    environment |= {
        "PYTHONPATH": str(checkout),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-exo", "pipefail", "-c", script], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert git(checkout, "status", "--porcelain") == ""
    return done.stdout + done.stderr


def test_every_command_has_an_entry_and_every_entry_a_command():
    found = [command for block in BLOCKS for command in commands(block)]
    assert [command for command in found if command not in COMMANDS] == []
    assert [command for command in COMMANDS if command not in found] == []
    for command, entry in COMMANDS.items():  # a small version is the same command
        if entry and not isinstance(entry, Not):
            assert entry.split()[:2] == command.split()[:2] or entry.startswith(("make -n", "pytest --nbmake"))


def block_of(command):
    (block,) = [block for block in BLOCKS if command in commands(block)]
    return block


def test_install_and_first_run(checkout):
    said = run_block(block_of("make setup"), checkout)
    assert "requirements.lock" in said and "kernels" in said
    run_block(block_of("k24lab report first"), checkout)
    written = {path.suffix for path in (checkout / "output").iterdir()}
    assert written == {".html", ".gif"}


def test_the_make_targets(checkout):
    small_runs("demo", "k24", "random24")
    said = run_block(block_of("make demo"), checkout)
    for line in ("k24lab sweep notebooks/grids/demo.yaml", "k24lab notebooks --runs demo", "pytest -n 2 tests"):
        assert f" {line}\n" in said
    assert f" {'pytest --nbmake -n 2 notebooks'}\n" in said  # the README's own command, from the folder above
    assert (checkout / "output" / "demo" / "05_ablations_curves.png").is_file()
    assert " python -m benchmarks.gpu" in run_block(block_of("make gpu"), checkout)


def test_notebooks_by_papermill_and_pytest(checkout):
    said = run_block(block_of("cd notebooks"), checkout)
    assert all(f"{path.stem}.ipynb" in said for path in (checkout / "notebooks").glob("*.ipynb"))
    assert (checkout / "executed" / "out.ipynb").is_file() and not (checkout / "build" / "test").exists()


def test_the_command_line(checkout):
    small_runs("mine", "fups", "nops")
    grid = {"name": "rolenav3", "common": SMALL, "grids": [{"method": ["k24"], "seed": [0]}]}
    (checkout / "build" / "rolenav3.yaml").write_text(yaml.safe_dump(grid))
    run_block(block_of("k24lab report rolenav3"), checkout)
    drawn = {path.name for path in (checkout / "output").iterdir()}
    assert {"report_rolenav3.html", "ours", "rolenav3.json", "team.onnx"} <= drawn


def test_export_for_tensorrt(checkout):
    pytest.importorskip("onnx")
    small_runs("demo", "k24")
    run_block(block_of(next(command for command in COMMANDS if "--agent 0" in command)), checkout)


@pytest.mark.parametrize("command", [c for c, entry in COMMANDS.items() if isinstance(entry, Not)])
def test_what_does_not_run_here_says_why(command):
    assert len(COMMANDS[command].split()) >= 4


def test_the_first_example_runs_as_it_stands(checkout, monkeypatch, capsys):
    (snippet,) = SNIPPETS["README.md"]
    assert snippet.count("128_000") == 1
    monkeypatch.chdir(checkout)
    exec(snippet.replace("128_000", "1_600"), {})
    assert "tensor(" in capsys.readouterr().out and list(checkout.glob("runs/*/*/masks.png"))
    assert git(checkout, "status", "--porcelain") == ""


def test_the_example_of_inference_runs_as_it_stands(checkout, monkeypatch, capsys):
    (snippet,) = SNIPPETS["docs/inference.md"]
    (run,) = small_runs("demo", "k24")
    monkeypatch.chdir(checkout)
    (checkout / "output").mkdir()
    exec(snippet.replace("runs/demo/rolenav-k24-s0-…", str(run)), {})
    assert "tensor(" in capsys.readouterr().out
    assert git(checkout, "status", "--porcelain") == ""


def test_the_example_of_the_layer_runs_as_it_stands():
    (snippet,) = SNIPPETS["docs/layer.md"]
    names = {}
    exec(snippet, names)
    assert names["y"].shape == (3, 16, 2)


def test_no_other_page_has_python_that_nothing_runs():
    elsewhere = {
        "docs/benchmarl.md",  # tests/test_integration_benchmarl.py
        "docs/contributing.md",  # tests/test_contributing.py
        "docs/experiments.md",  # tests/test_callbacks.py and tests/test_public_api.py
    }
    found = {path.relative_to(CHECKOUT).as_posix() for path in PAGES if "```python" in path.read_text()}
    assert found | {"README.md"} == elsewhere | set(SNIPPETS)
