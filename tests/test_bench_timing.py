"""The one helper that times calls beside each other."""

import pytest

from k24lab.bench import timing


def test_rounds_alternate_their_order_and_every_call_is_prepared_once():
    order, prepared = [], []

    def timer(call):
        prepared.append(call)
        return lambda: order.append(call()) or 10.0 * len(order)

    times = timing.interleaved({"a": lambda: "a", "b": lambda: "b"}, 3, timer)
    assert order == ["b", "a", "a", "b", "b", "a"] and len(prepared) == 2
    assert times == {"a": [20.0, 30.0, 60.0], "b": [10.0, 40.0, 50.0]}


def test_fast_calls_are_repeated_and_the_minimum_counts(monkeypatch):
    now = [0.0]
    durations = iter([125e-6] * 4 + [9.0] + [125e-6] * 3)  # two to warm up, and three times two, of which one is slow

    def timeit(timer, number):
        before = now[0]
        now[0] += sum(next(durations) for _ in range(number))
        return now[0] - before

    monkeypatch.setattr(timing.timeit.Timer, "timeit", timeit)
    monkeypatch.setattr(timing.timeit.Timer, "repeat", lambda timer, n, k: [timeit(timer, k) for _ in range(n)])
    assert timing.cpu_timer(lambda: next(durations))() == pytest.approx(125.0)
    assert next(durations, None) is None


def test_a_call_is_timed_in_microseconds():
    measure = timing.cpu_timer(lambda: sum(range(1000)))
    assert 1.0 < min(measure() for _ in range(5)) < 1000.0


def test_median_ratio_compares_round_by_round():
    assert timing.median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == 3.0
