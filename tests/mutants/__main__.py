"""`python -m mutants` (with tests/ on the path): run the sample, print the score, fail if a mutant goes unnoticed."""

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from mutants.equivalents import EQUIVALENTS
from mutants.plan import PLAN
from mutants.run import ROOT, SAMPLE, Slot, all_mutants, baseline, job_for, preload, record, run_jobs, sampled


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=SAMPLE, help=f"how many mutants (default {SAMPLE}; 0: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of mutants (default 0)")
    parser.add_argument("--file", default="", help="only files whose path contains this")
    parser.add_argument("--resume", action="store_true", help="leave out those that an earlier run saw killed")
    parser.add_argument("--equivalents", action="store_true", help="run those that are listed as equivalent instead")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutants", help="for copies and results")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    return parser.parse_args()


def main() -> int:
    """Exit code 1 if a mutant survives that is not listed as equivalent (or one that is listed is noticed)."""
    options = arguments()
    folder, mutants = options.folder.resolve(), all_mutants()
    chosen = mutants if options.equivalents else sampled(mutants, options.sample or len(mutants), options.seed)
    chosen = [m for m in chosen if options.file in m.file and (m.key in EQUIVALENTS) == options.equivalents]
    results = folder / "results.jsonl"
    rows = read(results) if options.resume else {}
    rows = {key: row for key, row in rows.items() if row["outcome"] in ("killed", "timeout")}
    left = [m for m in chosen if m.key not in rows]
    preload()
    slots = [Slot(folder / f"slot{k}") for k in range(options.processes)]
    for slot in slots:
        slot.prepare()
    results.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    started = time.monotonic()
    tests = {test: None for part in PLAN if any(m.file == part.file for m in left) for test in part.tests}
    seconds = baseline(tests, slots)
    print(f"{len(mutants)} mutants, {len(left)} to run; tests without one: {sum(seconds.values()):.0f} s", flush=True)
    with results.open("a") as file:
        for job in run_jobs([job_for(m, seconds) for m in left], slots):
            file.write(record(job) + "\n")
            file.flush()
            if job.outcome == "survived":
                m = job.mutant
                print(f"survived: {m.file}:{m.line} ({m.kind})\n  - {m.before}\n  + {m.after}", flush=True)
    survived = report(chosen, read(results), time.monotonic() - started)
    return int(survived < len(chosen) if options.equivalents else survived > 0)


def read(results: Path) -> dict:
    """Rows of a results file by mutant; none where there is no file."""
    lines = results.read_text().splitlines() if results.exists() else []
    return {tuple(row["key"]): row for row in map(json.loads, lines)}


def report(chosen: list, rows: dict, seconds: float) -> int:
    """Print the score by file and in all; returns how many survived."""
    outcomes = {m.key: rows[m.key]["outcome"] for m in chosen}
    by_file: dict[str, Counter] = {}
    for (file, _, _), outcome in outcomes.items():
        by_file.setdefault(file, Counter())[outcome] += 1
    for file, counts in sorted(by_file.items()):
        print(f"{file:32} {dict(counts)}")
    total = Counter(outcomes.values())
    noticed = total["killed"] + total["timeout"]
    print(f"{noticed} of {len(chosen)} noticed ({dict(total)}) in {seconds / 60:.0f} minutes")
    print(f"equivalent, and left out unless asked for: {len(EQUIVALENTS)}")
    return total["survived"]


if __name__ == "__main__":
    sys.exit(main())
