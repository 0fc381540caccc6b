"""The costs by size: what is measured is a ratio to what it says, and the picture shows all of it."""

import pandas as pd
import pytest

from benchmarks import scaling


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(scaling, "SHORTEST", 0.0)
    monkeypatch.setattr(scaling, "WIDTH", 64)


def test_every_size_is_measured_and_drawn(tmp_path):
    sizes = {"agents": (1, 2), "hidden size": (8,), "episodes in a batch": (2,)}
    rows = [*scaling.update_rows(2, sizes), *scaling.environment_rows(2, (1, 32))]
    table = pd.DataFrame(rows)
    assert len(table) == 4 * len(scaling.METHODS) + 2 * len(scaling.TASKS) and table["ratio"].gt(0).all()
    environments = table[table["panel"] == "environments"].set_index("size")["ratio"]
    assert environments[32].eq(1).all() and environments[1].gt(2).all()
    assert scaling.draw(table, tmp_path).is_file()
    assert pd.read_csv(tmp_path / "peers" / "scaling.csv").shape == table.shape


def test_updates_are_compared_with_products_of_as_much_work(monkeypatch):
    def interleaved(calls, rounds, timer):
        assert set(calls) == {*scaling.METHODS, scaling.PRODUCTS}
        return {name: [3.0] * rounds for name in calls}

    monkeypatch.setattr(scaling, "interleaved", interleaved)
    monkeypatch.setattr(scaling, "update_calls", lambda shape, episodes: dict.fromkeys([*scaling.METHODS, "products"]))
    table = pd.DataFrame(scaling.update_rows(2, {"agents": (3, 6), "episodes in a batch": (32, 64)}))
    ratio = table[table["of"] == "k24"].set_index(["panel", "size"])["ratio"]
    assert ratio["agents", 3] == pytest.approx(2 * scaling.WIDTH**3 / scaling.products(scaling.USUAL))
    assert ratio["agents", 6] == pytest.approx(ratio["agents", 3] / 2)  # twice the work in the same time
    assert ratio["episodes in a batch", 64] == pytest.approx(ratio["episodes in a batch", 32] / 2)
