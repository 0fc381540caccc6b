import itertools

import pytest

from k24lab.core.config import MaskConfig
from k24lab.core.schedules import linear, mask_temperature, temperature

PHASES = {"init": 5.0, "mid": 1.0, "minimum": 0.1, "anneal_start": 0.0, "anneal_end": 0.8}


@pytest.mark.parametrize(("progress", "value"), [(-1.0, 2), (0.0, 2), (0.25, 3.5), (1.0, 8), (7.0, 8)])
def test_linear_joins_its_ends_and_is_constant_outside(progress, value):
    assert linear(2.0, 8.0, progress) == pytest.approx(value)


@pytest.mark.parametrize(
    ("progress", "value"),
    [(0.0, 5.0), (0.2, 3.0), (0.4, 1.0), (0.6, 0.55), (0.8, 0.1), (0.9, 0.1), (1.0, 0.1), (2.0, 0.1)],
)
def test_two_phases_meet_at_the_middle_and_end_at_anneal_end(progress, value):
    assert temperature(progress, schedule="two_phase", **PHASES) == pytest.approx(value)


@pytest.mark.parametrize(("progress", "value"), [(0.0, 5.0), (0.4, 2.55), (0.8, 0.1), (1.0, 0.1)])
def test_linear_schedule_goes_straight_to_the_minimum(progress, value):
    assert temperature(progress, schedule="linear", **PHASES) == pytest.approx(value)


@pytest.mark.parametrize("progress", [-1.0, 0.0, 0.4, 0.8, 2.0])
def test_constant_schedule_stays_at_the_start(progress):
    assert temperature(progress, schedule="constant", **PHASES) == 5.0


@pytest.mark.parametrize("schedule", ["two_phase", "linear"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.8), (0.1, 1 / 3), (0.25, 1.0)])
def test_temperature_never_rises_and_is_constant_outside_the_annealing(schedule, start, end):
    phases = PHASES | {"anneal_start": start, "anneal_end": end}
    values = [temperature(k / 200, schedule=schedule, **phases) for k in range(201)]
    assert all(a >= b for a, b in itertools.pairwise(values))
    assert {v for k, v in enumerate(values) if k / 200 <= start} == {5.0}
    assert {round(v, 12) for k, v in enumerate(values) if k / 200 >= end} == {0.1}
    assert 5.0 > temperature((start + end) / 2, schedule=schedule, **phases) > 0.1


def test_temperature_of_a_configuration_uses_all_of_its_settings():
    config = MaskConfig(
        temperature_schedule="two_phase",
        temperature_init=4.0,
        temperature_mid=2.0,
        temperature_min=0.5,
        anneal_start=0.2,
        anneal_end=0.6,
    )
    assert [mask_temperature(config, p) for p in (0.0, 0.3, 0.4, 0.5, 0.6)] == pytest.approx([4.0, 3.0, 2.0, 1.25, 0.5])
