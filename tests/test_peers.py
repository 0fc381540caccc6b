"""Speed beside other libraries: what is measured, what is skipped, and what the table says."""

import importlib
import itertools
import subprocess
import sys

import generate_results
import numpy as np
import pandas as pd
import pytest
import tables
import torch

from benchmarks import acting, peers, training, updates
from benchmarks.driver import Side, Worker, WorkerError, interleaved_rates, ratio
from benchmarks.works import WORKS, Work
from k24lab.envs.base import EnvSpec
from k24lab.inference.actor import Actor
from k24lab.lab.config import build_config
from k24lab.marl.agent import build_agent

FAST, SLOW = Side("tests.working_peers:work", {"cost": 0.001}), Side("tests.working_peers:work", {"cost": 0.004})
BROKEN = Side("tests.working_peers:fail")


def stub(sides, pairs, text="stub work"):
    return Work("stub", text, sides, pairs, seconds=0.02)


class Enough(KeyboardInterrupt):
    """Ends a side that would work for ever."""


def counted(units):
    """A meter that ends its work at the second piece."""

    def meter(n=1):
        units.append(n)
        if len(units) == 2:
            raise Enough

    return meter


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "FIGURES", tmp_path)
    return tmp_path / "peers" / "peers.csv"


def test_sides_of_a_work_are_measured_and_compared():
    rows = peers.measure(stub({"ours": FAST, "theirs": SLOW}, (("ours", "theirs"),)), {}, rounds=3)
    (row,) = rows.to_dict("records")
    assert (row["ours"], row["theirs"], row["cores"]) == ("ours", "theirs", 1)
    assert 3 < row["low"] <= row["ratio"] <= row["high"] < 5


def test_a_side_that_fails_is_skipped_and_says_why(capsys):
    work = stub({"ours": FAST, "theirs": BROKEN, "others": SLOW}, (("ours", "theirs"), ("ours", "others")))
    rows = peers.measure(work, {}, rounds=1)
    assert rows["theirs"].to_list() == ["others"]
    assert "skipped: theirs: this peer is broken" in capsys.readouterr().out


def test_a_side_that_fails_later_is_an_error():
    worker = Worker("tests.working_peers:fail", {"after": 2}, sys.executable, cores=1)
    try:
        assert worker.rate(0) > 0 and worker.rate(0) > 0
        with pytest.raises(WorkerError, match="this peer is broken"):
            worker.rate(0)
    finally:
        worker.close()
    assert worker.process.returncode is not None and not worker.log.exists()


def test_a_side_that_fails_later_is_left_out(capsys):
    workers = {
        name: Worker(f"tests.working_peers:{target}", settings, sys.executable, cores=1)
        for name, target, settings in (("good", "work", {}), ("bad", "fail", {"after": 3}))
    }
    try:
        rates = interleaved_rates(workers, rounds=3, seconds=0)
    finally:
        for worker in workers.values():
            worker.close()
    assert list(rates) == ["good"] and len(rates["good"]) == 3
    assert "left out: bad: this peer is broken" in capsys.readouterr().out


def test_our_side_needs_a_python_that_has_the_kernels(capsys):
    ours = Side("benchmarks.training:run", {"method": "fups", "task": "rolenav"}, "jaxmarl")
    place = peers.Place(sys.executable, None, "1", "3.9")
    assert peers.measure(stub({"ours": ours, "theirs": SLOW}, (("ours", "theirs"),)), {"jaxmarl": place}, 1).empty
    assert "the kernels are built for Python 3.11, and jaxmarl has 3.9" in capsys.readouterr().out


def test_a_worker_ends_when_nobody_can_ask_it_any_more():
    command = [sys.executable, "-m", "benchmarks.worker", "tests.working_peers:work", "1", "{}"]
    done = subprocess.run(command, input="0\n0\n", capture_output=True, text=True, timeout=30, cwd=peers.ROOT)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2 and "says hello" in done.stderr
    assert all(float(line) > 0 for line in done.stdout.splitlines())


class Recorded:
    """A worker whose speeds are counted up."""

    def __init__(self, name, calls):
        self.name, self.calls, self.speed = name, calls, itertools.count(1)

    def rate(self, seconds):
        self.calls.append((self.name, seconds))
        return next(self.speed)


def test_every_other_round_goes_in_reverse_order_and_preparation_does_not_count():
    calls = []
    rates = interleaved_rates({name: Recorded(name, calls) for name in "ab"}, rounds=3, seconds=2)
    assert calls[:4] == [("a", 0), ("a", 2), ("b", 0), ("b", 2)]
    assert [name for name, _ in calls[4:]] == list("baabba")
    assert rates == {"a": [3, 4, 5], "b": [3, 4, 5]}


def test_ratio_is_that_of_the_rounds():
    assert ratio([2, 4, 30], [1, 1, 10]) == {"ratio": 3.0, "low": 2.5, "high": 3.5}


def test_table_keeps_other_pairs_and_replaces_the_same(figures):
    first, second = WORKS[0].pairs[:2]
    values = {"work": WORKS[0].text, "cores": 1, "version": "1", "ratio": 2.0, "low": 1.0, "high": 3.0}
    rows = pd.DataFrame([{**values, "ours": ours, "theirs": theirs} for ours, theirs in (second, first)])
    peers.write(rows, rounds=4)
    peers.write(rows[:1].assign(ratio=2.71828), rounds=5)
    table = pd.read_csv(figures)
    assert list(zip(table["ours"], table["theirs"], strict=True)) == [first, second]  # in the order of WORKS
    assert table["ratio"].to_list() == [2.0, 2.718] and table["rounds"].to_list() == [4, 5]
    assert {"machine", "kernels", "date"} <= set(table.columns)


def test_each_instruction_set_and_each_day_has_rows_and_a_column_of_its_own(figures, monkeypatch):
    (first, second), text = WORKS[0].pairs[:2], WORKS[0].text
    values = {"work": text, "cores": 1, "version": "v1", "low": 1.0, "high": 3.0}
    monkeypatch.setattr(peers.kernels, "describe", lambda: "avx512")
    both = [{**values, "ours": ours, "theirs": theirs, "ratio": 2.0} for ours, theirs in (first, second)]
    peers.write(pd.DataFrame(both), rounds=4)
    monkeypatch.setattr(peers.kernels, "describe", lambda: "avx2")
    peers.write(pd.DataFrame(both[1:]).assign(ratio=1.5), rounds=4)
    pd.read_csv(figures).assign(date="2026-01-31").to_csv(figures, index=False)
    peers.write(pd.DataFrame(both[1:]).assign(ratio=1.75), rounds=4)
    monkeypatch.setattr(tables, "FIGURES", figures.parents[1])
    tables.read.cache_clear()
    names = ["AVX2", "AVX2, before", "AVX-512"]
    header, _, *rows = generate_results.peers_table().splitlines()
    machine = generate_results.peers_machine()
    tables.read.cache_clear()
    columns = ["work", "k24lab", "beside", "version", *(f"times as fast, {name}" for name in names)]
    assert header == f"| {' | '.join(columns)} |"
    assert rows[0].startswith(f"| {text}; one core | {first[0]} |")
    assert rows[0].endswith("| v1 |  |  | 2.00 (1.00 to 3.00) |") and rows[1].startswith("|  | ")
    assert rows[1].endswith("| v1 | 1.75 (1.00 to 3.00) | 1.50 (1.00 to 3.00) | 2.00 (1.00 to 3.00) |")
    assert all(f"({name})" in machine for name in names) and "(AVX2, before), 2026-01-31;" in machine


def test_command_measures_what_is_there_and_names_what_is_missing(figures, monkeypatch, capsys, tmp_path):
    work = stub(
        {"ours": FAST, "theirs": SLOW, "away": Side(SLOW.target, {}, "epymarl")}, (("ours", "theirs"), ("ours", "away"))
    )
    monkeypatch.setattr(peers, "WORKS", (work,))
    peers.main(["--rounds", "1", "--peer", f"epymarl={tmp_path}"])
    out = capsys.readouterr().out
    assert "skipped: epymarl: it needs a checkout that has src/learners/q_learner.py" in out
    assert pd.read_csv(figures)["theirs"].to_list() == ["theirs"]


def test_no_rounds_are_refused(capsys):
    with pytest.raises(SystemExit):
        peers.main(["--rounds", "0"])
    assert "--rounds 0: at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("entry", ["nobody=/tmp", "epymarl", "epymarl="])
def test_wrong_peers_are_refused(entry, capsys):
    with pytest.raises(SystemExit):
        peers.main(["--peer", entry])
    assert "expected NAME=PATH with one of benchmarl" in capsys.readouterr().err


def test_a_peer_is_found_where_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setitem(peers.NEEDS, "here", (("numpy", "yaml"), "a.py"))
    monkeypatch.setitem(peers.NEEDS, "nowhere", (("numpy", "no_such_module"), None))
    assert "--peer here=FOLDER" in peers.find("here", [])
    (tmp_path / "a.py").touch()
    place = peers.Place(sys.executable, tmp_path, "unknown commit", peers.PYTHON)
    assert peers.find("here", [sys.executable, str(tmp_path)]) == place
    assert peers.find("nowhere", []) == "no_such_module cannot be imported"
    assert peers.find("nowhere", [str(tmp_path / "python")]) == f"{tmp_path / 'python'} does not exist"


def test_works_are_complete():
    assert len({work.name for work in WORKS}) == len(WORKS)
    for work in WORKS:
        assert work.pairs and {name for pair in work.pairs for name in pair} == set(work.sides)
        for side in work.sides.values():
            module, function = side.target.split(":")
            assert side.peer is None or side.peer in peers.NEEDS
            assert importlib.util.find_spec(module) is not None
            assert f"def {function}(meter: Meter" in (peers.ROOT / f"{module.replace('.', '/')}.py").read_text()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("library", ["numpy", "torch", "onnxruntime"])
def test_others_act_as_the_actor_does(library, tmp_path, monkeypatch):
    if library == "onnxruntime":
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    team = acting.random_team(4, 16)
    step, actor, state = acting.STEPS[library](team), Actor(team), torch.zeros(4, 2, 16)
    state = state if library == "torch" else state.numpy()
    for _ in range(3):
        x = torch.randn(4, 2, acting.OBS_DIM)
        q_values, state = step(x if library == "torch" else x.numpy(), state)
        np.testing.assert_allclose(np.asarray(q_values), actor.q_values(x), atol=1e-5)


@pytest.mark.parametrize("mixer", ["vdn", "qmix"])
def test_updates_are_counted(mixer):
    units = []
    with pytest.raises(Enough):
        updates.update(counted(units), (2, 5, 3, 8, 4), method="k24", mixer=mixer)
    assert units == [1, 1]


def test_products_are_those_of_the_network():
    shape = n, o, a, h, t = 2, 5, 3, 8, 4
    config = build_config(method="fups", hidden_dim=h)
    spec = EnvSpec(n_envs=1, n_agents=n, obs_dims=(o,) * n, n_actions=(a,) * n, state_dim=0, episode_limit=t)
    agent = build_agent(config, spec.obs_dim, spec.action_dim, n)
    weights = sum(layer.weight.numel() for layer in agent.layers.values())
    rows = n * updates.EPISODES * (t + 1)
    assert updates.products(shape) == 2 * rows * (2 * weights + weights + weights - o * h)


def test_env_steps_of_a_run_are_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    units = []
    with pytest.raises(Enough):
        training.run(counted(units), task="rolenav", method="fups", n_envs=4, batch_size=4, log_interval=100)
    assert all(n >= 100 for n in units)
