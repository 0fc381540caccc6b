"""The commands of `k24lab`; each loads what it needs when it runs, so that `--help` and `status` answer at once."""

import argparse
import contextlib
import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from k24lab.errors import ConfigError, RunError, unknown
from k24lab.lab.backends import MEMORY_GB, BackendName, Resources, end_with_parent
from k24lab.lab.config import Config, build_config
from k24lab.methods import get_method
from k24lab.methods.k24 import ALL_MASK_SETTINGS
from k24lab.rendering.commands import replay, report


def train(config: Annotated[Config, tyro.conf.OmitArgPrefixes], name: str = "default", quiet: bool = False) -> None:
    """Train one run, or go on with it.

    Example: k24lab train --task mpe2/simple_spread --method k24 --mixer qmix --seed 1

    Args:
        config: the run.
        name: group of runs, a folder under runs/.
        quiet: no progress bar and no notes.
    """
    from k24lab.lab.runs import canonical, run_folder
    from k24lab.lab.unused_settings import idle_changes

    config = build_config(vars(config))  # the same checks as for settings from a file or a notebook
    if not quiet and (idle := idle_changes(config)):
        print(f"k24lab: note: {', '.join(idle)}: of no effect in this run", file=sys.stderr)
    from k24lab.lab.train import train as train_run

    config = canonical(config)
    # With a folder: the note above is given once, and not at all with --quiet.
    print(train_run(config, folder=run_folder(config, name), progress=not quiet))


def train_with_defaults(arguments: Sequence[str]) -> "functools.partial[None]":
    """`train` with the defaults of the method and the learner that the command line names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method", nargs="?")
    parser.add_argument("--learner", nargs="?")
    named = parser.parse_known_args(arguments)[0]
    given = {key: value for key, value in vars(named).items() if value is not None}
    return functools.partial(train, config=build_config(given))


@contextlib.contextmanager
def only_used_settings(method: str) -> Iterator[None]:
    """Within it the help of `train` leaves out the settings of masks that a method does not use."""
    hidden = ALL_MASK_SETTINGS.difference(get_method(method).mask_settings)
    annotations = {kind: inspect.get_annotations(kind) for kind in Config.__mro__}
    try:
        for kind, fields in annotations.items():
            if hidden & fields.keys():
                suppressed = {name: Annotated[fields[name], tyro.conf.Suppress] for name in hidden & fields.keys()}
                kind.__annotations__ = fields | suppressed
        yield
    finally:
        for kind, fields in annotations.items():
            if hidden & fields.keys():
                kind.__annotations__ = fields


def resume(run: Annotated[str, tyro.conf.Positional], quiet: bool = False, notebook: str | None = None) -> None:
    """Go on with a run from its folder.

    Example: k24lab resume runs/default/rolenav-k24-s0-1a2b3c4d

    Args:
        run: run folder, or its name alone where only one group has it.
        quiet: no progress bar.
        notebook: execute the run in this notebook, e.g. 02_train; the copy is kept in the run folder.
    """
    from k24lab.lab.runs import find_folder, read_config

    end_with_parent()
    folder = find_folder(run)
    if notebook is not None:
        from k24lab.lab.notebooks import execute_run

        print(execute_run(folder, notebook))
        return
    from k24lab.lab.train import train as train_run

    print(train_run(read_config(folder), folder=folder, progress=not quiet))


def sweep(
    grid: Annotated[Path, tyro.conf.Positional],
    jobs: int | None = None,
    retry: bool = False,
    backend: BackendName = "local",
    hours: float = 24.0,
    memory_gb: float = MEMORY_GB,
    gpus: float = 0.0,
    options: dict[str, str] | None = None,
) -> None:
    """Train every run of a grid file that is not finished yet.

    Example: k24lab sweep demo
    Example: k24lab sweep grid.yaml --backend slurm --jobs 50 --hours 4 --options slurm_partition cpu

    Args:
        grid: YAML file of the runs, see docs/experiments.md; or the name of one that comes with the package.
        jobs: runs at a time; by default as many as this machine has cores and memory for, on SLURM and Ray 1000.
        retry: try runs that failed once more; otherwise they are only listed.
        backend: processes on this machine, a SLURM job array, or a Ray cluster; the last two need their extras.
        hours: time limit of a SLURM job, which is queued again when it has passed.
        memory_gb: memory of a run.
        gpus: GPUs of a run; a fraction shares one (Ray only).
        options: further parameters of submitit or of Ray's tasks.
    """
    from k24lab.lab.backends import build_backend
    from k24lab.lab.checks import check_device
    from k24lab.lab.grid import load_grid
    from k24lab.lab.sweep import sweep as sweep_runs

    loaded = load_grid(grid)
    if backend == "local":  # on a cluster the runs see other devices than this machine
        for device in {config.device for config in loaded.configs}:
            check_device(device)
    resources = Resources(jobs, max(c.n_threads for c in loaded.configs), hours, memory_gb, gpus, options or {})
    sweep_runs(loaded, build_backend(backend, resources, loaded.name), retry=retry)


def status(grid: Annotated[Path, tyro.conf.Positional]) -> None:
    """Show how far a grid is: runs finished, running, failed, started and waiting, and the errors.

    Example: k24lab status notebooks/grids/demo.yaml

    Args:
        grid: YAML file of the runs, or the name of a group under runs/.
    """
    from k24lab.lab.status import print_status

    print_status(grid)


def show(run: Annotated[str, tyro.conf.Positional]) -> None:
    """Show a run: settings, how far it is, last metrics, and where it comes from: code, packages, machine.

    Example: k24lab show rolenav-k24-s0-1a2b3c4d

    Args:
        run: run folder, or its name alone where only one group has it.
    """
    from k24lab.lab.runs import find_folder
    from k24lab.lab.status import describe_run

    print(describe_run(find_folder(run)))


def notebooks(
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    runs: str | None = None,
    jobs: int = os.cpu_count() or 1,
    parameters: dict[str, str] | None = None,
    copy: Path | None = None,
) -> None:
    """Execute notebooks on a group of runs: figures go to output/, the executed copies to executed/.

    Example: k24lab notebooks 03_mask_patterns 05_ablations --runs demo
    Example: k24lab notebooks 05_ablations --runs ablation --parameters reference k24
    Example: k24lab notebooks --copy mine

    Args:
        names: notebooks; by default 01, 03, 04, 05 and 06.
        runs: group of runs for the notebooks that read one; by default demo.
        jobs: notebooks at a time.
        parameters: names and values (YAML) for the notebooks' parameters cells.
        copy: execute nothing; copy all notebooks and grids of the package into this new folder.
    """
    from k24lab.lab.notebooks import copy_notebooks, execute_all, parse_parameters

    if copy is not None:
        print(copy_notebooks(copy))
        return
    for path in execute_all(names, runs, jobs, parse_parameters(parameters or {})):
        print(path)


def figures(
    groups: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    variant: str | None = None,
    name: str | None = None,
    jobs: int = os.cpu_count() or 1,
) -> None:
    """Draw every figure and table of groups of runs, one by one and all together, from their folders alone.

    Example: k24lab figures rolenav3 vmas_dispersion --name mine

    Args:
        groups: folders under runs/; by default all that have finished runs.
        variant: what all others are compared with; by default k24, or without it the first that has runs in all tasks.
        name: folder of the figures that show all groups together; by default the groups' names, or all.
        jobs: notebooks at a time.
    """
    from k24lab.analysis.draw_figures import draw_figures
    from k24lab.lab.paths import runs_dir

    found = groups or tuple(sorted({path.parent.parent.name for path in runs_dir().glob("*/*/DONE")}))
    if not found:
        raise RunError(f"no finished run in {runs_dir()}")
    for path in draw_figures(found, jobs, variant, name or "_".join(groups or ["all"])):
        print(path)


def export(
    what: Annotated[tuple[str, ...], tyro.conf.Positional],
    output: Path,
    format: Literal["marl-eval", "safetensors", "onnx"] = "marl-eval",
    dtype: str = "float32",
    agent: int | None = None,
) -> None:
    """Write the results of groups of runs as JSON (marl-eval), or the trained team of one run for other programs.

    Example: k24lab export rolenav3 vmas_dispersion --output results.json
    Example: k24lab export runs/demo/rolenav-k24-s0-1a2b3c4d --format onnx --output team.onnx

    Args:
        what: groups under runs/; with safetensors and onnx one run, by its folder or name.
        output: the file; one that is there is replaced.
        format: results in the layout of marl-eval, or the team with constant masks.
        dtype: of the team's weights: float32 or float16, with safetensors also bfloat16 or int8.
        agent: export this agent (or unit type) alone, with onnx.
    """
    if format == "marl-eval":
        if agent is not None or dtype != "float32":
            raise ConfigError("agent and dtype are of teams: they need --format safetensors or onnx")
        _export_results(what, output)
    elif len(what) != 1:
        raise ConfigError(f"--format {format} takes the folder of one run, not {len(what)}")
    elif agent is not None and format != "onnx":
        raise ConfigError(f"agent = {agent} needs --format onnx: a safetensors file holds the whole team")
    else:
        _export_team(what[0], output, format, dtype, agent)
    print(output)


def _export_results(groups: tuple[str, ...], output: Path) -> None:
    from k24lab.analysis.export import marl_eval
    from k24lab.analysis.load import load_metrics, load_summaries
    from k24lab.lab.files import atomic_write
    from k24lab.lab.find_runs import find_groups

    runs = find_groups(groups)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as file:
        file.write((json.dumps(marl_eval(load_metrics(runs), load_summaries(runs))) + "\n").encode())


def _export_team(run: str, output: Path, format: str, dtype: str, agent: int | None) -> None:
    from k24lab.inference.freeze import freeze_run, save_team
    from k24lab.inference.onnx import export_onnx
    from k24lab.lab.runs import find_folder

    team = freeze_run(find_folder(run))
    if format == "onnx":
        export_onnx(team, output, dtype, agent)
        lead = "" if agent is not None else f"{team.n_masks}, "
        print(f"inputs: obs [{lead}batch, {team.input_dim}], hidden [{lead}batch, {team.config.hidden_dim}]")
    else:
        save_team(team, output, dtype)
        print(f"{output.stat().st_size / 1000:.1f} kB in {dtype}, {team.n_masks} masks")


def import_(files: Annotated[tuple[Path, ...], tyro.conf.Positional], name: str | None = None) -> None:
    """Make run folders of raw summaries, to draw others' results beside one's own.

    Example: k24lab import figures/rolenav3/05_ablations_runs.jsonl

    Args:
        files: raw summaries, as notebook 05_ablations writes them.
        name: group of the runs; by default the name of the file's folder and "_runs", rolenav3_runs.
    """
    from k24lab.lab.importer import import_runs

    for folder in dict.fromkeys(path.parent for path in import_runs(files, name)):
        print(folder)


def bench(what: Annotated[str, tyro.conf.Positional], rounds: int = 10) -> None:
    """Measure speed on this machine, methods interleaved, one thread.

    Example: k24lab bench train
    Example: k24lab bench inference

    Args:
        what: train (learner updates), or inference (layers and steps of a team, dense and 2:4).
        rounds: measurements of each case; the median is reported.
    """
    if what not in ("train", "inference"):
        raise ConfigError(unknown("benchmark", what, ["train", "inference"]))
    if rounds < 2:
        raise ConfigError(f"rounds = {rounds} must be at least 2")
    if what == "train":
        from k24lab.bench.train import bench_train

        bench_train(rounds)
    else:
        from k24lab.bench.inference import bench_inference

        bench_inference(rounds)


def doctor(
    parts: Annotated[tuple[str, ...], tyro.conf.Positional] = (), task: str | None = None, episodes: int = 5
) -> None:
    """Show which optional parts are there, and how to get those that are not; or what is wrong with an environment.

    Example: k24lab doctor smacv2
    Example: k24lab doctor --task pettingzoo/my_module:my_env:size=5

    Args:
        parts: by default all; fails only if one that is named is missing.
        task: play random episodes of this task, each twice, and print what its environment does that it should not.
        episodes: how many, with a task.
    """
    from k24lab.lab.doctor import doctor as check

    raise SystemExit(check(parts, task, episodes))


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "resume": resume,
    "sweep": sweep,
    "status": status,
    "show": show,
    "replay": replay,
    "report": report,
    "notebooks": notebooks,
    "figures": figures,
    "export": export,
    "import": import_,
    "bench": bench,
    "doctor": doctor,
}
