"""Runs tests on mutants of copies of the package, several at once, and says which ones no test noticed.

One process imports torch and the test tools and forks for each mutant, which saves their import each time. The child
alone imports k24lab, from its own copy of the source.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mutants.generate import Mutant, mutants_of
from mutants.plan import NAMED, PLAN

ROOT = Path(__file__).parents[2]
COPIED = ("k24lab", "tests", "pyproject.toml")  # of the root
LINKED = ("README.md", "docs", "mkdocs.yml", "figures", "notebooks")  # which tests read
PRELOADED = ("torch", "numpy", "scipy.stats", "pandas", "matplotlib.pyplot", "hypothesis", "beartype", "jaxtyping")
PRELOADED += ("pytest", "gymnasium", "tqdm", "torch.sparse._semi_structured_conversions")
SAMPLE, SEED = 400, 0
OPTIONS = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
# The test tools were imported before pytest could rewrite their assertions; nothing else is lost by that.
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
PATIENCE, FIRST_SECONDS = 4.0, 30.0  # a mutant may take this many times as long as the tests without one, and more


def named_mutants(root: Path = ROOT) -> list[Mutant]:
    """The mutants of the plan's table; raises ValueError for a line that is no longer there, or there twice."""
    found = []
    for file, before, after in NAMED:
        source = (root / file).read_text()
        if source.count(before) != 1:
            raise ValueError(f"{file}: the line {before!r} is there {source.count(before)} times, not once")
        start = source.index(before)
        line = 1 + source[:start].count("\n")
        found.append(Mutant(file, line, "named", start, start + len(before), after, before, after))
    return found


def all_mutants(root: Path = ROOT) -> list[Mutant]:
    """The named ones, then all that the generator makes of the plan's files."""
    found = named_mutants(root)
    keys = {m.key for m in found}
    for part in PLAN:
        made = mutants_of(part.file, (root / part.file).read_text(), part.functions)
        for mutant in made:
            if mutant.key not in keys:  # two lines of a file may be the same: one of them is enough
                keys.add(mutant.key)
                found.append(mutant)
    return found


def sampled(mutants: list[Mutant], n: int, seed: int = SEED) -> list[Mutant]:
    """The named ones and a fixed choice of `n` in all; where a line changes, the choice among the others stays."""

    def number(mutant: Mutant) -> str:
        return hashlib.sha256(repr((seed, mutant.key)).encode()).hexdigest()

    named = [m for m in mutants if m.kind == "named"]
    rest = sorted((m for m in mutants if m.kind != "named"), key=number)
    chosen = set(named + rest[: max(n - len(named), 0)])
    return [m for m in mutants if m in chosen]


@dataclass
class Slot:
    """A copy of the package in which one process at a time runs tests."""

    folder: Path
    root: Path = ROOT  # what is copied
    pid: int = 0
    job: "Job | None" = None
    started: float = 0.0

    @property
    def tree(self) -> Path:
        """Root of the copy."""
        return self.folder / "tree"

    @property
    def original(self) -> Path:
        """The file that is mutated now, as it was."""
        return self.folder / "original"

    def prepare(self) -> None:
        """Make the copy; whatever was there goes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.tree.mkdir(parents=True)
        for name in COPIED:
            source = self.root / name
            if source.is_dir():
                shutil.copytree(source, self.tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, self.tree / name)
        for name in LINKED:
            if (self.root / name).exists():
                (self.tree / name).symlink_to(self.root / name)

    def start(self, job: "Job") -> None:
        """Write the mutant and fork."""
        if job.mutant:
            path = self.tree / job.mutant.file
            shutil.copy2(path, self.original)
            path.write_text(job.mutant.apply(path.read_text()))
        self.job, self.started = job, time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _run_tests(self, job)

    def finish(self, code: int | None) -> None:
        """Take the package back to what it was and note the outcome; `code` is None after a timeout."""
        job = self.job
        assert job is not None
        if job.mutant:  # with the old time stamp, so that the compiled file of the baseline is valid again
            shutil.copy2(self.original, self.tree / job.mutant.file)
        job.seconds = time.monotonic() - self.started
        job.outcome = "timeout" if code is None else "survived" if code == 0 else "killed"
        log = (self.folder / "log.txt").read_text(errors="replace").splitlines()
        job.by = next((x.split(" ")[1] for x in log if x.startswith(("FAILED", "ERROR"))), "")
        job.tail = "\n".join(log[-30:])
        self.pid, self.job = 0, None


@dataclass
class Job:
    """Tests to run, on a mutant or (the baseline) on none."""

    tests: tuple[str, ...]
    mutant: Mutant | None
    limit: float
    outcome: str = ""
    seconds: float = 0.0
    by: str = ""
    tail: str = field(default="", repr=False)


def _run_tests(slot: Slot, job: Job) -> None:
    """In the child: run the tests in the copy and leave with pytest's exit code."""
    import pytest

    code = 70
    try:
        os.setsid()
        os.chdir(slot.tree)
        sys.path.insert(0, str(slot.tree))
        os.environ["PYTHONPATH"] = str(slot.tree)
        sys.dont_write_bytecode = job.mutant is not None
        with (slot.folder / "log.txt").open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = int(pytest.main([*job.tests, *OPTIONS, f"--basetemp={slot.folder / 'tmp'}"]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def preload() -> None:
    """Import what the tests need besides k24lab, and make hypothesis repeatable and patient."""
    for name in PRELOADED:
        __import__(name)
    from hypothesis import settings

    settings.register_profile("mutants", deadline=None, derandomize=True, database=None)
    settings.load_profile("mutants")


def run_jobs(jobs: Iterable[Job], slots: list[Slot]) -> Iterator[Job]:
    """Run jobs in all slots at once; gives each when it is done."""
    waiting, busy = iter(jobs), []
    while True:
        for slot in slots:
            if slot.job is None and (job := next(waiting, None)):
                slot.start(job)
                busy.append(slot)
        if not busy:
            return
        for slot in list(busy):
            code = _ended(slot)
            if code != "running":
                job = slot.job
                slot.finish(code)
                busy.remove(slot)
                yield job
        time.sleep(0.02)


def _ended(slot: Slot) -> int | str | None:
    """Exit code of the slot's process, None if it had to be killed, or "running"."""
    pid, status = os.waitpid(slot.pid, os.WNOHANG)
    if pid:
        _kill_group(slot.pid)  # what the tests may have left running
        return os.waitstatus_to_exitcode(status)
    if time.monotonic() - slot.started > slot.job.limit:
        _kill_group(slot.pid)
        os.waitpid(slot.pid, 0)
        return None
    return "running"


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def baseline(tests: Iterable[str], slots: list[Slot]) -> dict[str, float]:
    """Seconds of each test file without a mutant; raises RuntimeError where one fails."""
    seconds = {}
    for job in run_jobs([Job((test,), None, 1800.0) for test in tests], slots):
        if job.outcome != "survived":
            raise RuntimeError(f"{job.tests[0]} fails without any mutant:\n{job.tail}")
        seconds[job.tests[0]] = job.seconds
    return seconds


def job_for(mutant: Mutant, seconds: dict[str, float]) -> Job:
    """All tests of the mutant's file."""
    tests = next(part.tests for part in PLAN if part.file == mutant.file)
    return Job(tests, mutant, FIRST_SECONDS + PATIENCE * sum(seconds.get(test, 0.0) for test in tests))


def record(job: Job) -> str:
    """A line of the results."""
    mutant = job.mutant
    assert mutant is not None
    row = {"key": mutant.key, "line": mutant.line, "kind": mutant.kind, "outcome": job.outcome}
    return json.dumps(row | {"seconds": round(job.seconds, 1), "by": job.by})
