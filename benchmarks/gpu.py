"""`python -m benchmarks.gpu`: all measurements on a machine with an NVIDIA GPU, in under eight minutes.

Each part has its own time limit and writes its table and figure at its end. A part that was measured completely is
skipped, so the command continues where it was cut off. On a GPU each part runs in its own process, so that it can
neither exceed its time nor spoil the GPU's state for the others. On the CPU everything is a dry run: tiny sizes, in a
separate folder.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import signal
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
from k24lab.analysis.speedup_plots import case_marks, gpu_figure, gpu_map
from k24lab.analysis.style import paper_style, save_figure, save_table
from k24lab.bench.timing import show
from k24lab.cli import one_line_errors
from k24lab.errors import ConfigError, RunError
from k24lab.lab.files import atomic_write
from k24lab.lab.paths import CHECKOUT, figures_dir, project_root
from k24lab.lab.provenance import cpu_name
from k24lab.ops.library import keep_memory, use_threads

LAYER = ("outputs", "inputs", "batch")
UPDATE = ("n_agents", "hidden", "place")
LOOP = ("task", "place", "n_envs")
TEST_SECONDS = 70
GRACE = 10  # A part may exceed its limit by this many seconds, to end the case that it has started.
STOP_SECONDS = 5  # An interrupted process is killed if it has not ended after this many seconds.


class Part(NamedTuple):
    """A part, the seconds after which it starts no further case, and what draws its table.

    The figure shows the column `value` of the rows that the query `shown` selects.
    """

    rows: Callable[[str, measure.Sizes], Iterator[measure.Row]]
    seconds: float
    draw: Callable[[pd.DataFrame], Figure] | None = None
    value: str = ""
    shown: str = ""


def tests(device: str, sizes: measure.Sizes) -> Iterator[measure.Row]:
    """Tests that are marked `gpu`; when their time is up pytest is interrupted, and reports what has run.

    pytest collects only the files with such marks, because importing the others would use up the time.
    """
    del device  # the tests find it themselves
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "junit.xml")
        paths = sorted((CHECKOUT / "tests").glob(sizes.tests))
        files = [str(path) for path in paths if "pytest.mark.gpu" in path.read_text()]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu"]
        command += [f"--junitxml={report}", f"--basetemp={folder}/tests", *files]
        code = run_for(command, TEST_SECONDS, CHECKOUT)
        cases = list(ET.parse(report).iterfind(".//testcase[@name]")) if report.is_file() else []
        for case in cases:
            found = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            row = {"test": f"{case.get('classname')}.{case.get('name')}", "seconds": float(case.get("time", 0))}
            outcome, said = ("passed", "") if found is None else (found.tag, found.get("message", ""))
            yield row | {"outcome": outcome, "problem": said.partition("\n")[0]}
        if code not in (0, 1) or not cases:  # 1: all tests ran, and some failed
            ended = "was stopped when its time was up" if code is None else f"ended with exit code {code}"
            raise RunError(f"pytest {ended} and reported {len(cases)} tests")


def run_for(command: list[str], seconds: float, cwd: Path | None = None) -> int | None:
    """Run a command and return its exit code, or None if its time was up.

    It is interrupted then, also when Ctrl-C ends the wait, and killed if that does not end it.
    """
    process = subprocess.Popen(command, cwd=cwd)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        try:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)
        finally:
            process.kill()
            process.wait()


draw_layers = partial(case_marks, case=LAYER, value="speedup", label="speedup over dense")
draw_updates = partial(case_marks, case=UPDATE, value="ms", label="time of an update (ms)")
draw_loops = partial(case_marks, case=LOOP, value="env_steps_per_s", label="env steps per second")
draw_memory = partial(case_marks, case=["what"], value="peak_mb", label="peak memory (MB)")
PARTS = {
    "tests": Part(tests, 85),
    "teams": Part(measure.teams, 85, gpu_figure, "speedup", "mode == 'graph' and form.str.startswith('2:4')"),
    "crossover": Part(measure.crossover, 40, gpu_map, "speedup", "form == '2:4, cuSPARSELt'"),
    "layers": Part(measure.layers, 45, draw_layers, "speedup", "form != 'dense'"),
    "updates": Part(measure.updates, 55, draw_updates, "ms"),
    "loops": Part(measure.loops, 50, draw_loops, "env_steps_per_s"),
    "memory": Part(measure.memory, 25, draw_memory, "peak_mb"),
}  # Together 385 s, and GRACE for each part: under eight minutes.


def bench_gpu(device: str = "cuda", rounds: int = 10, again: bool = False) -> Path:
    """Measure all parts that are not measured completely yet, and return the folder of this device with their files.

    A part that had a problem is measured again. Its earlier table stays if the problem is there again and fewer rows
    were measured.

    Args:
        device: cuda, or cpu for a dry run.
        rounds: measurements of each case; the median counts.
        again: measure all of them anew.

    Raises:
        ConfigError: another device, no GPU that torch can use, or no rounds.
    """
    if rounds < 1:
        raise ConfigError(f"rounds = {rounds} must be at least 1")
    folder, about = _folder(device), _about(device)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.json"
    if again:
        for path in (manifest, *(folder / f"{name}.csv" for name in PARTS)):
            path.unlink(missing_ok=True)
    known: dict[str, Any] = json.loads(manifest.read_text())["parts"] if manifest.is_file() else {}
    for name in PARTS:
        done = _measure_part(name, device, rounds, folder, known.get(name, {}).get("problem"), about)
        if done:
            known[name] = done
            with atomic_write(manifest) as opened:
                opened.write((json.dumps(about | _machine(device) | {"parts": known}, indent=2) + "\n").encode())
    print(f"{folder}: {sum(each['seconds'] for each in known.values()):.0f} s in all")
    return folder


def _measure_part(
    name: str, device: str, rounds: int, folder: Path, before: str | None, about: dict[str, str]
) -> dict[str, Any] | None:
    """The entry of a part in the manifest, or None if it keeps the table and the entry that it has.

    `before` is the problem of its earlier measurement: empty if there was none.
    """
    file = folder / f"{name}.csv"
    n_earlier = len(pd.read_csv(file)) if file.is_file() else 0
    if n_earlier and before == "":
        print(f"{name}: measured already, {file}")
        return None
    started = time.perf_counter()
    table, problem = _measured(name, device, rounds, folder)
    if problem and len(table) < n_earlier:
        print(f"{name}: {len(table)} rows ({problem}); the earlier {n_earlier} rows are kept, {file}")
        return None
    if len(table):
        undrawn = _save(table.assign(**about), name, PARTS[name], folder)
        problem = problem or undrawn
    seconds = round(time.perf_counter() - started, 1)
    print(f"{name}: {len(table)} rows in {seconds} s {problem}")
    return {"seconds": seconds, "rows": len(table), "problem": problem}


def write_rows(name: str, device: str, rounds: int, file: Path, deadline: float) -> None:
    """Write each row of a part as a line of JSON, and then why cases are missing (an empty string if none is)."""
    use_threads(1)  # Runs train on one thread; the part `updates` measures all cores as well.
    keep_memory()  # Runs do so, too.
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
    """The rows of a part, and in one line why cases are missing (an empty string if none is)."""
    file, seconds = folder / f".{name}.rows", PARTS[name].seconds
    file.unlink(missing_ok=True)
    deadline, code = time.time() + seconds, None
    if device == "cpu":
        write_rows(name, device, rounds, file, deadline)
    else:
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, device, str(rounds), str(file)]
        command.append(str(deadline))
        code = run_for(command, seconds + GRACE - STOP_SECONDS)
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    file.unlink(missing_ok=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]  # a killed process may leave half a line
    problem = f"its process ended with exit code {code}" if code else "it was stopped: its last case took too long"
    if found and isinstance(found[-1], str):
        problem = found.pop()
    return pd.DataFrame(found), problem


def _save(table: pd.DataFrame, name: str, part: Part, folder: Path) -> str:
    """Print and write a table and its figure; the table is kept where the figure fails, with the reason returned."""
    show(f"{name}, {table['device'][0]} ({table['kind'][0]})", table.drop(columns=["kind", "device", "date"]))
    try:
        if part.draw is not None:
            rows = table.query(part.shown, engine="python") if part.shown else table
            if part.value not in rows or rows[part.value].isna().all():
                return "no figure: nothing that it shows was measured"
            with paper_style():
                figure = part.draw(rows)
                figure.suptitle(f"{table['device'][0]} ({table['kind'][0]}, {table['date'][0]})", fontsize=8)
                save_figure(figure, name, table, folder)
    except Exception as error:
        return f"no figure: {measure.one_line(error)}"
    finally:
        save_table(table, name, folder)
    return ""


def _folder(device: str) -> Path:
    """The folder of this GPU's files; dry runs have theirs outside the figures."""
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
    """Versions and hardware, on which the numbers depend."""
    machine: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "cpu": cpu_name()}
    machine["n_cpus"] = len(os.sched_getaffinity(0))
    if device == "cpu":
        return machine
    with contextlib.suppress(OSError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        machine["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    machine["cusparselt"] = torch.backends.cusparselt.version() if torch.backends.cusparselt.is_available() else None
    return machine | {"capability": ".".join(map(str, torch.cuda.get_device_capability()))}


def main() -> None:
    """Read the command line and measure."""
    # Shells start background jobs that ignore SIGINT. With this handler, child processes do not inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.argv[1:2] == ["--part"]:  # This is the process of one part.
        name, device, rounds, file, deadline = sys.argv[2:]
        write_rows(name, device, int(rounds), Path(file), float(deadline))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="All measurements on an NVIDIA GPU.")
    parser.add_argument("--device", default="cuda", help="cpu is a dry run in tiny sizes")
    parser.add_argument("--rounds", type=int, default=10, help="measurements of each case; the median counts")
    parser.add_argument("--again", action="store_true", help="also measure what is measured already")
    given = parser.parse_args()
    with one_line_errors():
        bench_gpu(given.device, given.rounds, given.again)


if __name__ == "__main__":
    main()
