"""The measurements on a GPU as a dry run on the CPU: every part writes its files, and no failure stops another part."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import gpu, gpu_parts
from benchmarks.gpu import PARTS, Part, bench_gpu
from k24lab.analysis.style import paper_style
from k24lab.bench import inference
from k24lab.errors import ConfigError, RunError

MODES = ["eager", "graph", "compiled", "compiled graph"]
POPEN = subprocess.Popen


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """The folder of a whole dry run."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("K24LAB_HOME", str(home))
        patch.setenv("K24LAB_FIGURES", str(home / "figures"))
        folder = bench_gpu("cpu", 2)
    assert not (home / "figures").exists() and folder == home / "output" / "gpu_dry_run"
    return folder


def test_a_dry_run_writes_the_files_of_every_part(dry_run):
    tables = {name: pd.read_csv(dry_run / f"{name}.csv", keep_default_na=False) for name in PARTS}
    parts = json.loads((dry_run / "manifest.json").read_text())["parts"]
    for name, table in tables.items():
        assert parts[name]["rows"] == len(table) > 0 and parts[name]["problem"] == "", parts[name]
        assert set(table["kind"]) == {"dry run"} and table["device"].str.len().gt(0).all()
        assert (dry_run / f"{name}.png").exists() == (name != "tests")
    assert (
        set(tables["tests"]["outcome"]) <= {"skipped", "passed"}
        and tables["tests"]["test"].str.contains("gpu|cuda").all()
    )
    for name, modes in (("layers", MODES), ("teams", MODES), ("crossover", ["graph"])):
        assert list(tables[name]["mode"].unique()) == modes
        assert tables[name]["problem"].eq("").all() and tables[name]["error"].lt(1e-2).all()
    assert set(tables["loops"]["form"]) == {"no training", "training, k24", "training, fups"}
    assert tables["loops"]["env_steps_per_s"].gt(0).all() and len(tables["loops"]) == 12
    assert set(tables["updates"]["form"]) == set(gpu_parts.LEARNED) and tables["updates"]["ms"].gt(0).all()
    assert len(tables["memory"]) == len(gpu_parts.VARIANTS) + 6
    assert {path.suffix for path in dry_run.iterdir()} == {".csv", ".png", ".pdf", ".json"}  # nothing temporary is left


def test_a_second_call_measures_nothing_and_again_measures_all(dry_run, monkeypatch, capsys):
    monkeypatch.setenv("K24LAB_HOME", str(dry_run.parents[1]))
    before = {path.name: path.stat().st_mtime_ns for path in dry_run.iterdir()}
    bench_gpu("cpu", 2)
    assert capsys.readouterr().out.count("measured already") == len(PARTS)
    assert before == {path.name: path.stat().st_mtime_ns for path in dry_run.iterdir()}


def rows(*values):
    return Part(lambda device, sizes: iter([{"value": value} for value in values]), 60)


@pytest.fixture
def parts(monkeypatch):
    """Three parts of two rows each, to be replaced."""
    made = {name: rows(1, 2) for name in ("first", "second", "third")}
    monkeypatch.setattr(gpu, "PARTS", made)
    return made


def known(folder):
    return json.loads((folder / "manifest.json").read_text())["parts"]


def test_a_part_that_fails_is_recorded_in_one_line_tried_again_and_stops_no_other(parts):
    def fail(device, sizes):
        raise RuntimeError("no such kernel\nand a long explanation")
        yield

    parts["second"] = Part(fail, 60)
    folder = bench_gpu("cpu")
    assert known(folder)["second"]["problem"] == "RuntimeError: no such kernel"
    assert sorted(path.stem for path in folder.glob("*.csv")) == ["first", "third"]
    parts["second"] = rows(3)
    bench_gpu("cpu")
    assert known(folder)["second"]["problem"] == "" and len(known(folder)) == 3
    assert pd.read_csv(folder / "second.csv")["value"].tolist() == [3]


def test_what_a_part_measured_before_it_failed_is_kept(parts):
    def fail_late(device, sizes):
        yield {"value": 7}
        raise MemoryError("too large")

    parts["second"] = Part(fail_late, 60)
    folder = bench_gpu("cpu")
    assert known(folder)["second"] | {"seconds": 0} == {"seconds": 0, "rows": 1, "problem": "MemoryError: too large"}
    assert pd.read_csv(folder / "second.csv")["value"].tolist() == [7]


def test_an_incomplete_part_is_measured_again_and_keeps_its_rows_if_there_are_fewer_then(parts, capsys):
    def failing_after(*values):
        def measured(device, sizes):
            yield from ({"value": value} for value in values)
            raise MemoryError("too large")

        return Part(measured, 60)

    for part, kept, problem in (
        (failing_after(1, 2), [1, 2], "MemoryError: too large"),
        (failing_after(3), [1, 2], "MemoryError: too large"),
        (failing_after(4, 5, 6), [4, 5, 6], "MemoryError: too large"),
        (rows(7), [7], ""),  # complete
        (rows(8, 8), [7], ""),  # not measured
    ):
        parts["second"] = part
        folder = bench_gpu("cpu")
        assert pd.read_csv(folder / "second.csv")["value"].tolist() == kept
        found = known(folder)["second"]
        assert (found["rows"], found["problem"]) == (len(kept), problem)
    assert capsys.readouterr().out.count("second: 1 rows (MemoryError: too large); the earlier 2 rows are kept") == 1


def test_a_part_that_was_cut_off_is_done_again_and_those_before_it_are_not(parts):
    def interrupted(device, sizes):
        yield {"value": 1}
        raise KeyboardInterrupt

    parts["second"] = Part(interrupted, 60)
    with pytest.raises(KeyboardInterrupt):
        bench_gpu("cpu")
    parts["first"], parts["second"] = rows(5, 5), rows(6, 6)
    folder = bench_gpu("cpu")
    values = {path.stem: pd.read_csv(path)["value"].tolist() for path in folder.glob("*.csv")}
    assert values == {"first": [1, 2], "second": [6, 6], "third": [1, 2]}
    bench_gpu("cpu", again=True)
    assert pd.read_csv(folder / "first.csv")["value"].tolist() == [5, 5]


def test_a_part_whose_time_is_up_begins_no_further_case(parts):
    def slow(device, sizes):
        for value in range(100):
            time.sleep(0.02)
            yield {"value": value}

    parts["second"] = Part(slow, 0.1)
    folder = bench_gpu("cpu")
    assert 2 <= len(pd.read_csv(folder / "second.csv")) < 100
    assert known(folder)["second"]["problem"] == "its time is up: cases are left out"
    assert known(folder)["third"]["rows"] == 2


def test_a_figure_that_fails_costs_no_table(parts):
    parts["first"] = parts["first"]._replace(draw=lambda table: 1 / 0, value="value")
    folder = bench_gpu("cpu")
    assert known(folder)["first"]["problem"].startswith("no figure: ZeroDivisionError")
    assert len(pd.read_csv(folder / "first.csv")) == 2


@pytest.mark.parametrize("name", [name for name, part in PARTS.items() if part.draw is not None])
@pytest.mark.parametrize("measured", [{}, {"speedup": 2.0, "ms": None, "env_steps_per_s": None, "peak_mb": None}])
def test_a_table_without_what_the_figure_shows_says_so(name, measured, tmp_path):
    row = {"form": "dense", "mode": "eager", "problem": "no kernel", "kind": "measured", "device": "A", "date": "today"}
    said = gpu._save(pd.DataFrame([row | measured]), name, PARTS[name], tmp_path)
    assert said == "no figure: nothing that it shows was measured"
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.csv"]


@pytest.fixture
def card(monkeypatch):
    """A GPU that has a name and a number, and can do nothing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4 (80 GB)")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))


def test_on_a_gpu_a_part_is_a_process_that_can_be_stopped_or_die(card, parts, monkeypatch, tmp_path):
    ends = {"first": 0, "second": None, "third": -11}

    def run_for(command, seconds):
        name, device, rounds, file, deadline = command[4:]
        assert command[:4] == [sys.executable, "-m", "benchmarks.gpu", "--part"] and (device, rounds) == ("cuda", "4")
        assert (
            float(deadline) == pytest.approx(time.time() + 60, abs=5) and seconds + gpu.STOP_SECONDS == 60 + gpu.GRACE
        )
        done = {"first": '{"value": 1}\n""\n', "second": '{"value": 1}\n{"val', "third": ""}
        Path(file).write_text(done[name])
        return ends[name]

    monkeypatch.setattr(gpu, "run_for", run_for)
    asked = subprocess.CompletedProcess("nvidia-smi", 0, stdout="580.1\n")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: asked)
    folder = bench_gpu("cuda", 4)
    assert folder == tmp_path / "figures" / "gpu" / "nvidia_a100_sxm4_80_gb"
    assert pd.read_csv(folder / "second.csv")["kind"].tolist() == ["measured"]
    said = {name: (each["rows"], each["problem"]) for name, each in known(folder).items()}
    assert said["first"] == (1, "") and said["second"] == (1, "it was stopped: its last case took too long")
    assert said["third"] == (0, "its process ended with exit code -11")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["driver"], manifest["capability"]) == ("580.1", "8.0")


def test_the_process_of_a_part_writes_its_rows(tmp_path):
    file = tmp_path / "rows"
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", "crossover", "cpu", "2", file, str(time.time() + 60)]
    subprocess.run(command, check=True)
    *lines, end = map(json.loads, file.read_text().splitlines())
    assert len(lines) == 2 * 2 * 2 and end == "" and lines[0]["form"] == "dense"


def test_without_a_gpu_there_is_one_clear_error():
    with pytest.raises(ConfigError, match="must be 'cuda', or 'cpu' for a dry run"):
        bench_gpu("mps")
    with pytest.raises(ConfigError, match="rounds = 0 must be at least 1"):
        bench_gpu("cpu", 0)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="sees no CUDA device; k24lab doctor cuda says what is missing"):
            bench_gpu()


def test_all_parts_together_take_less_than_eight_minutes():
    assert sum(part.seconds + gpu.GRACE for part in PARTS.values()) < 8 * 60 - 20  # which figures may take
    assert PARTS["tests"].seconds > gpu.TEST_SECONDS + gpu.STOP_SECONDS + 5  # which importing takes


@pytest.fixture
def processes(monkeypatch):
    """The processes that are started, which have a moment to stop."""
    started = []

    def start(*given, **options):
        started.append(POPEN(*given, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(gpu, "STOP_SECONDS", 0.3)
    return started


def test_a_process_is_run_to_its_end_interrupted_or_killed(processes):
    def run_for(code, seconds):
        return gpu.run_for([sys.executable, "-I", "-S", "-c", f"import signal, time; {code}"], seconds)

    assert run_for("raise SystemExit(3)", 60) == 3
    assert run_for("signal.signal(signal.SIGINT, print); signal.pause(); raise SystemExit(4)", 1) is None
    assert run_for("signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)", 1) is None
    assert [process.returncode for process in processes] == [3, 4, -9]


@pytest.mark.parametrize("impatient", [False, True])
def test_ctrl_c_leaves_no_process(processes, monkeypatch, impatient):
    wait, interrupts = POPEN.wait, [KeyboardInterrupt] * (1 + impatient)

    def interrupted(process, timeout=None):
        if interrupts:
            time.sleep(0.3)  # in which the process begins to ignore SIGINT
            raise interrupts.pop()
        return wait(process, timeout)

    monkeypatch.setattr(POPEN, "wait", interrupted)
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(5)"
    with pytest.raises(KeyboardInterrupt):
        gpu.run_for([sys.executable, "-I", "-S", "-c", code], 60)
    assert processes[0].returncode not in (None, 0)


@pytest.mark.parametrize("report", ["", "<testsuites><testsuite/></testsuites>"])
def test_tests_that_cannot_be_run_are_a_problem(monkeypatch, report):
    monkeypatch.setattr(gpu, "run_for", reporting(report, 4))
    with pytest.raises(RunError, match="pytest ended with exit code 4 and reported 0 tests"):
        next(gpu.tests("cpu", gpu_parts.DRY))


def reporting(report, code):
    """A run of pytest that writes this report and ends with this code."""

    def run_for(command, seconds, cwd):
        (path,) = [Path(part.partition("=")[2]) for part in command if part.startswith("--junitxml=")]
        if report:
            path.write_text(report)
        return code

    return run_for


@pytest.mark.parametrize(("code", "problem"), [(0, ""), (1, ""), (2, "ended with exit code 2"), (None, "was stopped")])
def test_tests_that_did_not_all_run_are_kept_and_a_problem(parts, monkeypatch, code, problem):
    # pytest reports the test that it was interrupted in as a case without a name.
    report = '<testsuite><testcase name="a" time="1"/><testcase time="0"/></testsuite>'
    monkeypatch.setattr(gpu, "run_for", reporting(report, code))
    parts["second"] = Part(gpu.tests, 60)
    folder = bench_gpu("cpu")
    assert pd.read_csv(folder / "second.csv")["outcome"].tolist() == ["passed"]
    said = known(folder)["second"]["problem"]
    assert said.startswith(f"RunError: pytest {problem}") and said.endswith("1 tests") if problem else said == ""


def test_only_files_with_marked_tests_are_collected(monkeypatch, tmp_path):
    (tmp_path / "tests").mkdir()
    mark = "pytest.mark." + "gpu"
    for name, text in (
        ("test_a", f"@{mark}"),
        ("test_b", "@pytest.mark.slow"),
        ("test_c", f"marks={mark}"),
        ("d", mark),
    ):
        (tmp_path / "tests" / f"{name}.py").write_text(text)
    commands = []
    monkeypatch.setattr(gpu, "CHECKOUT", tmp_path)
    monkeypatch.setattr(gpu, "run_for", lambda command, *given: commands.append(command))
    with pytest.raises(RunError, match="reported 0 tests"):
        next(gpu.tests("cpu", gpu_parts.Sizes()))
    assert [Path(part).name for part in commands[0] if part.endswith(".py")] == ["test_a.py", "test_c.py"]


def test_a_part_keeps_memory_as_runs_do(parts, monkeypatch):
    kept = []
    monkeypatch.setattr(gpu, "keep_memory", lambda: kept.append(True))
    bench_gpu("cpu")
    assert len(kept) == len(parts)


def test_what_was_measured_on_gpus_is_found_and_drawn(dry_run, monkeypatch, tmp_path):
    table = pd.read_csv(dry_run / "teams.csv")
    for device in ("a", "b"):
        (tmp_path / "figures" / "gpu" / device).mkdir(parents=True)
        table.assign(device=device).to_csv(tmp_path / "figures" / "gpu" / device / "teams.csv", index=False)
    _, found = inference.measurements()
    assert len(found) == 2 * len(table) and set(found["device"]) == {"a", "b"}
    with paper_style():
        fig = PARTS["teams"].draw(table)
    forms = ["2:4, cuSPARSELt", "2:4, CUTLASS", "2:4 with gains, cuSPARSELt", "2:4 grouped, cuSPARSELt"]
    assert [ax.get_title() for ax in fig.axes if ax.get_title()] == [f"{form}\nbatch 2" for form in forms]
