"""Speed of k24lab beside other libraries: `python -m benchmarks.peers`. It installs nothing.

Whatever can be imported, or is given with --peer, is measured, and the rest is skipped. The table
figures/peers/peers.csv has a row for each pair: the median over rounds of our speed over theirs, with quartiles.
docs/performance.md shows it.
"""

import argparse
import datetime
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.driver import ROOT, Side, Worker, interleaved_rates, ratio
from benchmarks.works import WORKS, Work
from k24lab.analysis.style import save_table
from k24lab.lab.provenance import cpu_name
from k24lab.ops import library as kernels

FIGURES = ROOT / "figures"
NAME = "peers/peers"
PAIR = ["work", "ours", "theirs"]
PYTHON = ".".join(map(str, sys.version_info[:2]))
# What each peer needs: modules in its Python, the first of which has its version, and a file of its checkout.
NEEDS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "benchmarl": (("benchmarl", "vmas"), None),
    "jaxmarl": (("jaxmarl", "flashbax", "hydra", "wandb"), "baselines/QLearning/qmix_rnn.py"),
    "epymarl": (("torch", "gym"), "src/learners/q_learner.py"),
    "kaleidoscope": (("torch", "gym", "einops", "torch_scatter"), "Kalei_MPE/src/learners/Kalei_q_learner.py"),
    "onnxruntime": (("onnxruntime", "onnx"), None),
}
FIND = """
import importlib.metadata, importlib.util, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
print(f"{', '.join(missing)} cannot be imported" if missing else importlib.metadata.version(sys.argv[1]))
print(*sys.version_info[:2], sep=".")
sys.exit(bool(missing))
"""


@dataclass(frozen=True)
class Place:
    """Where a peer was found."""

    python: str
    checkout: Path | None
    version: str
    release: str = ""  # of Python


def find(name: str, given: Sequence[str]) -> Place | str:
    """A peer in what was given for it (a Python, a checkout or both) and otherwise in this Python; else why not."""
    paths = [Path(path).absolute() for path in given]
    python = next((str(path) for path in paths if path.is_file()), sys.executable)
    checkout = next((path for path in paths if path.is_dir()), None)
    modules, file = NEEDS[name]
    if absent := [str(path) for path in paths if not path.exists()]:
        return f"{absent[0]} does not exist"
    if file and (checkout is None or not (checkout / file).is_file()):
        return f"it needs a checkout that has {file}: --peer {name}=FOLDER"
    found = subprocess.run([python, "-c", FIND, *modules], capture_output=True, text=True, cwd="/")
    if found.returncode:
        return (found.stdout or found.stderr).strip().splitlines()[0]
    version, release = found.stdout.split()
    return Place(python, checkout, _commit(checkout) if checkout else version, release)


def _commit(checkout: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown commit"


def _is_ours(side: Side) -> bool:
    return side.target.startswith("benchmarks.training")


def start(side: Side, cores: int, places: Mapping[str, Place]) -> Worker:
    """The process of a side."""
    place = places[side.peer] if side.peer else Place(sys.executable, None, "")
    settings = dict(side.settings)
    if place.checkout and not _is_ours(side):
        settings["checkout"] = str(place.checkout)
    return Worker(side.target, settings, place.python, cores)


def measure(work: Work, places: Mapping[str, Place], rounds: int) -> pd.DataFrame:
    """Rows of the table for the pairs of a work of which both sides were found and can work."""
    sides = {name: side for name, side in work.sides.items() if side.peer is None or side.peer in places}
    for name in [name for name, side in sides.items() if side.peer and _is_ours(side)]:
        if (release := places[str(sides[name].peer)].release) != PYTHON:
            print(f"  skipped: {name}: the kernels are built for Python {PYTHON}, and {sides[name].peer} has {release}")
            del sides[name]
    pairs = [(ours, theirs) for ours, theirs in work.pairs if ours in sides and theirs in sides]
    workers: dict[str, Worker] = {}
    try:
        for name in dict.fromkeys(name for pair in pairs for name in pair):
            workers[name] = start(sides[name], work.cores, places)
        rates = interleaved_rates(workers, rounds, work.seconds)
    finally:
        for worker in workers.values():
            worker.close()
    about = {"work": work.text, "cores": work.cores}
    rows = [
        {**about, "ours": ours, "theirs": theirs, "version": version(work.sides[theirs], places)}
        | ratio(rates[ours], rates[theirs])
        for ours, theirs in pairs
        if ours in rates and theirs in rates
    ]
    return pd.DataFrame(rows)


def version(side: Side, places: Mapping[str, Place]) -> str:
    """Version or commit of what a side is made of; empty where it is k24lab itself."""
    if side.peer:
        return places[side.peer].version
    library = side.settings.get("library", "torch" if side.target.endswith("products") else "")
    return f"{library} {importlib.metadata.version(library).partition('+')[0]}" if library else ""


def write(rows: pd.DataFrame, rounds: int) -> Path:
    """The table, in which these rows replace those of the same pairs with the same kernels on the same day."""
    path = FIGURES / f"{NAME}.csv"
    machine = f"{cpu_name()}, {os.cpu_count()} cores"
    about = {"machine": machine, "kernels": kernels.describe(), "date": datetime.date.today().isoformat()}
    table = rows.assign(rounds=rounds, **about)
    if path.is_file():
        table = pd.concat([pd.read_csv(path), table]).drop_duplicates(["kernels", "date", *PAIR], keep="last")
    pairs = ((work.text, *pair) for work in WORKS for pair in work.pairs)
    order = {pair: k for k, pair in enumerate(pairs)}
    places = [order.get(tuple(key), len(order)) for key in table[PAIR].to_numpy()]
    table = table.assign(place=places).sort_values(["place", "kernels", "date"], kind="stable").drop(columns="place")
    return save_table(table.round({"ratio": 3, "low": 3, "high": 3}), NAME, FIGURES)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help="its Python or its checkout")
    names = [work.name for work in WORKS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="WORK", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error(f"--rounds {given.rounds}: at least 1")
    paths: dict[str, list[str]] = {name: [] for name in NEEDS}
    for entry in given.peer:
        name, _, path = entry.partition("=")
        if name not in NEEDS or not path:
            parser.error(f"--peer {entry}: expected NAME=PATH with one of {', '.join(NEEDS)}")
        paths[name].append(path)
    works = [work for work in WORKS if work.name in given.only]
    wanted = {side.peer for work in works for side in work.sides.values() if side.peer}
    found = {name: find(name, paths[name]) for name in NEEDS if name in wanted}
    for name, place in found.items():
        print(f"{name}: {place.version}" if isinstance(place, Place) else f"skipped: {name}: {place}")
    places = {name: place for name, place in found.items() if isinstance(place, Place)}
    for work in works:
        print(f"\n{work.name}: {work.text}", flush=True)
        rows = measure(work, places, given.rounds)
        for row in rows.to_dict("records"):
            spread = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            print(f"  {row['ours']} / {row['theirs']}: {spread}", flush=True)
        if len(rows):
            print(f"  {write(rows, given.rounds)}")


if __name__ == "__main__":
    main()
