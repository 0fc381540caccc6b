"""What the parts of the GPU benchmark measure, on the CPU: implementations, modes, sizes and memory."""

import weakref
from collections import Counter

import pandas as pd
import pytest
import torch

from benchmarks import gpu_parts

MODES = [mode for modes in gpu_parts.MODES for mode in modes]


def test_implementations_that_fail_have_their_reason_and_the_others_their_times():
    two = torch.full((2,), 2.0)

    def missing():
        raise NotImplementedError("compute capability 8 only\n  File ...")

    forms = {"missing": missing, "dense": lambda: (lambda: two, two), "wrong": lambda: (lambda: two + 1, two)}
    forms["no kernel"] = lambda: (missing, two)  # packed, but not multiplied
    table = pd.DataFrame(gpu_parts.compared(forms, ("eager", "graph"), "cpu", 2)).set_index(["mode", "form"])
    assert len(table) == 8 and table["us"].notna().sum() == 4
    for form in ("missing", "no kernel"):
        assert table["problem"]["graph", form] == "NotImplementedError: compute capability 8 only"
    assert table["error"]["eager", "wrong"] == 0.5 and table["error"]["eager", "dense"] == 0
    assert table["speedup"]["graph", "dense"] == 1 and table["problem"]["graph", "wrong"] == ""


@pytest.mark.parametrize("mode", MODES)
def test_modes_compile_and_capture_what_they_say(mode, monkeypatch):
    done = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: done.append("compiled") or call)
    monkeypatch.setattr(gpu_parts, "capture", lambda call: done.append("graph") or call)
    two = torch.full((2,), 2.0)
    timed, error = gpu_parts._ready("cuda", mode, 3, (lambda: done.append("call") or two, two))
    timed()
    calls = ["call"] * 3
    replayed = ["graph", *calls] if "graph" in mode else []
    assert done == ["compiled"] * ("compiled" in mode) + calls + replayed + calls and error == 0


@pytest.mark.parametrize("mode", MODES)
def test_the_error_is_that_of_what_the_mode_computes(mode, monkeypatch):
    two = torch.full((2,), 2.0)
    computed = two.clone()
    monkeypatch.setattr(torch, "compile", lambda call, **options: lambda: call().add_(1))
    monkeypatch.setattr(gpu_parts, "capture", lambda call: lambda: computed.mul_(2))  # a replay that goes wrong
    _, error = gpu_parts._ready("cuda", mode, 1, (lambda: computed, two))
    assert error == {"eager": 0, "graph": 1, "compiled": 0.5, "compiled graph": 2}[mode]


def test_one_measurement_has_more_calls_of_small_cases_and_the_large_layers_come_first(monkeypatch):
    seen = []

    def compared(forms, modes, device, rounds, calls):
        seen.append((*forms["dense"], calls))
        return []

    monkeypatch.setattr(gpu_parts, "compared", compared)
    for made in ("_layer_forms", "_team_forms"):
        monkeypatch.setattr(gpu_parts, made, lambda device, *case: {"dense": case, "2:4, CUTLASS": case})
    sizes = gpu_parts.Sizes()
    for part, fewest in ((gpu_parts.crossover, 1), (gpu_parts.layers, 1)):
        seen.clear()
        list(part("cuda", sizes))
        work = [(out * columns * batch, calls) for out, columns, batch, calls in seen]
        assert all(calls == 20 or calls == fewest or each * calls <= 3e11 for each, calls in work)
        assert max(each * calls for each, calls in work) < 6e11 and {calls for _, calls in work} >= {1, 20}
        if part is gpu_parts.crossover:
            widths = [width for width, *_ in seen]
            assert widths == sorted(widths, reverse=True) and {4096, 8192} <= {
                w for w, _, batch, _ in seen if batch == 4096
            }
    seen.clear()
    list(gpu_parts.teams("cuda", sizes))
    assert all(calls > 1 for *_, calls in seen) and {n: calls for _, n, _, calls in seen} == {3: 21, 8: 8, 32: 2}


def test_loops_begin_with_rolenav(monkeypatch):
    monkeypatch.setattr(gpu_parts, "_environment_alone", lambda *case: 1.0)
    monkeypatch.setattr(gpu_parts, "_training", lambda *case: 1.0)
    found = list(gpu_parts.loops("cuda", gpu_parts.Sizes()))
    tasks = [row["task"] for row in found]
    assert len(found) == 3 * 14 and tasks == sorted(tasks, key=gpu_parts.TASKS.index) and tasks[0] == "rolenav"
    assert Counter(row["form"] for row in found[:14]) == {"no training": 6, "training, k24": 4, "training, fups": 4}


def test_held_memory_is_that_of_one_implementation(monkeypatch):
    alive = weakref.WeakSet()

    def build(megabytes):
        weight = torch.zeros(megabytes * 250_000)
        alive.add(weight)
        return lambda: weight, weight[:1]

    forms = {str(megabytes): lambda megabytes=megabytes: build(megabytes) for megabytes in (3, 1, 2)}
    monkeypatch.setattr(gpu_parts, "VARIANTS", {})
    monkeypatch.setattr(gpu_parts, "_team_forms", lambda *case: forms)
    monkeypatch.setattr(gpu_parts, "_peak", lambda call: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: sum(each.nbytes for each in alive))
    found = list(gpu_parts.memory("cuda", gpu_parts.Sizes()))
    assert {row["form"]: row["held_mb"] for row in found} == {"3": 3, "1": 1, "2": 2}
