"""`python -m benchmarks.gpu`: all that is to be measured on a machine with an NVIDIA GPU, in under eight minutes.

Each part has a time of its own and writes its table and figure at its end; a part whose table is there is skipped, so
the command goes on where it was cut off. On a GPU a part is a process of its own, which can neither outlast its time
nor spoil the GPU's state for the others. On the CPU everything is a dry run: tiny sizes, in a folder apart.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure

from benchmarks import gpu_parts as measure
from k24lab.analysis.speedup_plots import case_bars as bars, gpu_figure, gpu_map
from k24lab.analysis.style import paper_style, save_figure, save_table
from k24lab.bench.timing import show
from k24lab.cli import one_line_errors
from k24lab.errors import ConfigError, RunError
from k24lab.lab.files import atomic_write
from k24lab.lab.paths import CHECKOUT, figures_dir, project_root
from k24lab.lab.provenance import cpu_name

LAYER = ("outputs", "inputs", "batch")
TEST_SECONDS = 75
GRACE = 10  # seconds in which a case that has begun may end


class Part(NamedTuple):
    """A part, the seconds after which it begins no further case, and what draws its table."""

    rows: Callable[[str, measure.Sizes], Iterator[measure.Row]]
    seconds: float
    draw: Callable[[pd.DataFrame], Figure] | None = None


def tests(device: str, sizes: measure.Sizes) -> Iterator[measure.Row]:
    """Tests that are marked `gpu`; when their time is up pytest is interrupted, and reports what has run."""
    del device  # the tests find it themselves
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "junit.xml")
        command = ["timeout", "--signal=INT", "--kill-after=5", str(TEST_SECONDS), sys.executable, "-m", "pytest", "-q"]
        command += ["-m", "gpu", f"--junitxml={report}", f"--basetemp={folder}/tests", sizes.tests]
        code = subprocess.run(command, cwd=CHECKOUT).returncode
        cases = list(ET.parse(report).iter("testcase")) if report.is_file() else []
        if not cases:
            raise RunError(f"pytest ended with exit code {code} and reported no test")
        for case in cases:
            found = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            row = {"test": f"{case.get('classname')}.{case.get('name')}", "seconds": float(case.get("time", 0))}
            outcome, said = ("passed", "") if found is None else (found.tag, found.get("message", ""))
            yield row | {"outcome": outcome, "problem": said.partition("\n")[0]}


PARTS = {
    "tests": Part(tests, 85),
    "teams": Part(measure.teams, 85, gpu_figure),
    "crossover": Part(measure.crossover, 40, gpu_map),
    "layers": Part(measure.layers, 45, lambda table: bars(table[table["form"] != "dense"], LAYER, "speedup")),
    "updates": Part(measure.updates, 55, partial(bars, value="ms", case=["n_agents", "hidden", "place"])),
    "loops": Part(measure.loops, 50, partial(bars, value="env_steps_per_s", case=["task", "place", "n_envs"])),
    "memory": Part(measure.memory, 25, partial(bars, value="peak_mb", case=["what"])),
}  # 385 s, and GRACE for each: under eight minutes


def bench_gpu(device: str = "cuda", rounds: int = 10, again: bool = False) -> Path:
    """Measure all parts that are not measured yet, and return the folder of this device with their files.

    Args:
        device: cuda, or cpu for a dry run.
        rounds: measurements of each case; the median counts.
        again: measure all of them anew.

    Raises:
        ConfigError: another device, or no GPU that torch can use.
    """
    folder, about = _folder(device), _about(device)
    folder.mkdir(parents=True, exist_ok=True)
    if again:
        for name in PARTS:
            (folder / f"{name}.csv").unlink(missing_ok=True)
    manifest = folder / "manifest.json"
    known: dict[str, Any] = json.loads(manifest.read_text())["parts"] if manifest.is_file() else {}
    for name, part in PARTS.items():
        if (folder / f"{name}.csv").is_file():
            print(f"{name}: measured already, {folder / name}.csv")
            continue
        started = time.perf_counter()
        table, problem = _measured(name, device, rounds, folder)
        if len(table):
            undrawn = _save(table.assign(**about), name, part, folder)
            problem = problem or undrawn
        known[name] = {"seconds": round(time.perf_counter() - started, 1), "rows": len(table), "problem": problem}
        print(f"{name}: {len(table)} rows in {known[name]['seconds']} s {problem}")
        with atomic_write(manifest) as file:
            file.write((json.dumps(about | _machine(device) | {"parts": known}, indent=2) + "\n").encode())
    print(f"{folder}: {sum(each['seconds'] for each in known.values()):.0f} s in all")
    return folder


def write_rows(name: str, device: str, rounds: int, file: Path, deadline: float) -> None:
    """Write each row of a part as a line of JSON, and at the end why there are not more: empty if there are all."""
    torch.set_num_threads(1)  # as runs train; the part `updates` measures all cores as well
    sizes, problem = measure.DRY if device == "cpu" else measure.Sizes(rounds=rounds), ""
    with file.open("w") as lines:
        try:
            for row in PARTS[name].rows(device, sizes):
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                if time.time() > deadline:
                    problem = "its time is up: cases are left out"
                    break
        except Exception as error:
            problem = measure.one_line(error)
        lines.write(json.dumps(problem) + "\n")


def _measured(name: str, device: str, rounds: int, folder: Path) -> tuple[pd.DataFrame, str]:
    """The rows of a part, as many as there are, and in one line why there are not more."""
    file, seconds = folder / f".{name}.rows", PARTS[name].seconds
    file.unlink(missing_ok=True)
    deadline, code = time.time() + seconds, None
    if device == "cpu":
        write_rows(name, device, rounds, file, deadline)
    else:
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu",
            "--part",
            name,
            device,
            str(rounds),
            str(file),
            str(deadline),
        ]
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = subprocess.run(command, timeout=seconds + GRACE).returncode
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    file.unlink(missing_ok=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]  # of a killed process the last may be torn
    problem = f"its process ended with exit code {code}" if code else "it was stopped: its last case took too long"
    if found and isinstance(found[-1], str):
        problem = found.pop()
    return pd.DataFrame(found), problem


def _save(table: pd.DataFrame, name: str, part: Part, folder: Path) -> str:
    """Print and write a table and its figure; the table is kept where the figure fails, with the reason returned."""
    show(f"{name}, {table['device'][0]} ({table['kind'][0]})", table.drop(columns=["kind", "device", "date"]))
    try:
        if part.draw is not None:
            with paper_style():
                figure = part.draw(table)
                figure.suptitle(f"{table['device'][0]} ({table['kind'][0]}, {table['date'][0]})", fontsize=8)
                save_figure(figure, name, table, folder)
    except Exception as error:
        return f"no figure: {measure.one_line(error)}"
    finally:
        save_table(table, name, folder)
    return ""


def _folder(device: str) -> Path:
    """A folder for each GPU; that of dry runs is never among the figures."""
    if device == "cpu":
        return project_root() / "output" / "gpu_dry_run"
    if device != "cuda":
        raise ConfigError(f"device = {device!r} must be 'cuda', or 'cpu' for a dry run")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"torch {torch.__version__} sees no CUDA device; k24lab doctor cuda says what is missing, "
            "and --device cpu is a dry run"
        )
    return figures_dir() / "gpu" / re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name().lower()).strip("_")


def _about(device: str) -> dict[str, str]:
    """Columns of every table."""
    name, kind = (cpu_name(), "dry run") if device == "cpu" else (torch.cuda.get_device_name(), "measured")
    return {"kind": kind, "device": name, "date": datetime.date.today().isoformat()}


def _machine(device: str) -> dict[str, Any]:
    """What else the numbers depend on."""
    machine = {"torch": torch.__version__, "cuda": torch.version.cuda, "cpu": cpu_name(), "n_cpus": os.cpu_count()}
    if device == "cpu":
        return machine
    with contextlib.suppress(OSError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        machine["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    machine["cusparselt"] = torch.backends.cusparselt.version() if torch.backends.cusparselt.is_available() else None
    return machine | {"capability": ".".join(map(str, torch.cuda.get_device_capability()))}


def main() -> None:
    """Read the command line and measure."""
    if sys.argv[1:2] == ["--part"]:  # one part, in a process of its own
        name, device, rounds, file, deadline = sys.argv[2:]
        write_rows(name, device, int(rounds), Path(file), float(deadline))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="All measurements on an NVIDIA GPU.")
    parser.add_argument("--device", default="cuda", help="cpu is a dry run in tiny sizes")
    parser.add_argument("--rounds", type=int, default=10, help="measurements of each case; the median counts")
    parser.add_argument("--again", action="store_true", help="measure what is measured already, too")
    given = parser.parse_args()
    with one_line_errors():
        bench_gpu(given.device, given.rounds, given.again)


if __name__ == "__main__":
    main()
