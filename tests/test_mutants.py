"""The mutation tester itself: what it changes, what it reports, and that its tables fit the present source."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutants.equivalents import EQUIVALENTS
from mutants.generate import mutants_of
from mutants.plan import NAMED, PLAN
from mutants.run import ROOT, all_mutants, named_mutants, sampled

TESTS = Path(__file__).parent
TOY = '''"""A toy."""


def above(values, limit=2):
    """How many values lie above the limit."""
    count, k = 0, 0
    while k < len(values):
        count += values[k] > limit
        k += 1
    return count
'''
TOY_TEST = """
from k24lab.toy import above


def test_above():
    assert above([1, 3, 5]) == 2
"""
# Each mistake with the seconds that its tests may take: only the one that never ends is cut off.
RUN_TOY = """
import sys
from pathlib import Path
from mutants.generate import mutants_of
from mutants.run import Job, Slot, run_jobs

root, slots = Path(sys.argv[1]), []
for k in range(2):
    slots.append(Slot(root / f"slot{k}", root))
    slots[k].prepare()
source = (root / "k24lab" / "toy.py").read_text()
made = {m.after: m for m in mutants_of("k24lab/toy.py", source)}
limits = {"count -= values[k] > limit": 100, "count += values[k] >= limit": 100, "k += 0": 5}
jobs = [Job(("tests/test_toy.py",), made[after], limit) for after, limit in limits.items()]
for job in run_jobs(jobs, slots):
    print(job.outcome, "|", job.mutant.after, "|", job.by)
for slot in slots:
    assert (slot.tree / "k24lab" / "toy.py").read_text() == source
"""


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300, **options
    )


def test_each_mutant_is_noticed_or_survives_or_never_ends_and_its_copy_is_restored(tmp_path):
    for name, text in (("k24lab/toy.py", TOY), ("k24lab/__init__.py", ""), ("tests/test_toy.py", TOY_TEST)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = '-p no:jaxtyping'\n")
    done = run("-c", RUN_TOY, str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "killed | count -= values[k] > limit | tests/test_toy.py::test_above",
        "survived | count += values[k] >= limit | ",
        "timeout | k += 0 | ",
    ]


def test_a_mistake_that_a_review_found_is_noticed_by_the_tests_of_its_file(tmp_path):
    arguments = [
        "--file",
        "inference/packing",
        "--sample",
        str(len(NAMED)),
        "--processes",
        "1",
        "--folder",
        str(tmp_path),
    ]
    done = run("-m", "mutants", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 noticed ({'killed': 1})" in done.stdout
    assert '"by": "tests/test_packing.py::test_' in (tmp_path / "results.jsonl").read_text()


# --- tables ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mutants():
    return all_mutants()


def test_files_tests_and_functions_of_the_plan_are_there(mutants):
    assert len({part.file for part in PLAN}) == len(PLAN)
    for part in PLAN:
        assert all((ROOT / test).exists() for test in part.tests), part
        assert any(m.file == part.file for m in mutants), part
        for function in part.functions or ():
            assert f"def {function}(" in (ROOT / part.file).read_text()
    wanted = {str(p.relative_to(ROOT)) for part in ("core", "marl") for p in (ROOT / "k24lab" / part).glob("*.py")}
    assert {file for file in wanted if not file.endswith(("__init__.py", "/config.py"))} <= {part.file for part in PLAN}


def test_named_mutants_apply_to_the_present_source_and_are_always_run(mutants):
    named = named_mutants()
    assert [(m.file, m.before, m.after) for m in named] == list(NAMED)
    for mutant in named:
        source = (ROOT / mutant.file).read_text()
        assert mutant.apply(source).replace(mutant.after, mutant.before) == source
    assert set(named) <= set(sampled(mutants, len(named)))


def test_listed_equivalents_are_mutants_of_the_present_source_each_with_a_reason(mutants):
    keys = {m.key for m in mutants}
    gone = [key for key in EQUIVALENTS if key not in keys]
    assert not gone, f"no longer made, so no longer equivalent: {gone}"
    assert all(len(reason) > 20 for reason in EQUIVALENTS.values())


def test_the_sample_is_fixed_and_the_files_give_more_than_enough(mutants):
    assert len(mutants) > 1000 and len({m.key for m in mutants}) == len(mutants)
    first, again, other = sampled(mutants, 300), sampled(mutants, 300), sampled(mutants, 300, seed=1)
    assert first == again != other and len(first) == 300
    assert len({m.file for m in first}) > 20
    without = [m for m in mutants if m != first[-1]]  # a change of the source takes no other mutant from the sample
    assert set(first) - set(sampled(without, 300)) == {first[-1]}
    for mutant in first:
        ast.parse(mutant.apply((ROOT / mutant.file).read_text()))


# --- what is changed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x = a < b", {"x = a <= b"}),
        ("x = a is not b", {"x = a is b"}),
        ("x = a not in b", {"x = a in b"}),
        ("x = a + b * c", {"x = a - b * c", "x = a + b / c"}),
        ("x = a // b", {"x = a / b"}),
        ("x = a and b", {"x = a or b"}),
        ("x = -a", {"x = a"}),
        ("x = not a", {"x = a"}),
        ("x = f(3)", {"x = f(4)", "x = f(2)"}),
        ("x = f(0.5, flag=True)", {"x = f(1.0, flag=True)", "x = f(0.5, flag=False)"}),
        ("x = a[1:]", {"x = a[:-1]", "x = a[2:]", "x = a[0:]"}),
        ("x = a[:-1]", {"x = a[1:]", "x = a[:1]", "x = a[:-2]", "x = a[:-0]"}),
        ("x = a[:n]", {"x = a[n:]"}),
        ("x = f(a, b)", {"x = f(b, a)"}),
        ("x = where(c, a, b)", {"x = where(c, b, a)"}),
        ("x = a.abs()", {"x = a"}),
        ("x = np.sqrt(a)", {"x = a"}),
        ("x = a.detach().sum()", {"x = a.sum()", "x = a.detach().mean()"}),
        ("x = min(a, b)", {"x = max(a, b)"}),
        ("x = a if c else b", {"x = a if not (c) else b"}),
        ("x += a", {"x -= a", "pass"}),
        ("f(a)", {"pass"}),
        ("x[i] = a", {"pass"}),
        ('raise ValueError(f"{a + b} at {1}")', set()),
        ("from a import b", set()),
        ('"""A docstring about 1 + 1."""', set()),
        ("x: int = 3", {"x: int = 4", "x: int = 2"}),
        ("x = f(a, dtype=1, device=2)", set()),
    ],
)
def test_typical_mistakes_are_made_one_at_a_time(line, expected):
    source = f"# ä, before what is changed\n{line}  # after it\n"
    made = list(mutants_of("a.py", source))
    assert {m.after.removesuffix("  # after it") for m in made} == expected
    for mutant in made:
        assert mutant.apply(source).splitlines()[1] == mutant.after
        assert mutant.before == f"{line}  # after it" and mutant.line == 2
