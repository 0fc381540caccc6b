"""The mask browser: what it shows is what the files hold, whichever way it was asked for."""

import base64
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from k24lab.analysis.load import Patterns
from k24lab.analysis.style import paper_style
from k24lab.core.patterns import PATTERNS_24
from k24lab.errors import RunError
from k24lab.lab.find_runs import find_runs
from k24lab.rendering.draw_mask import describe, mask_view
from k24lab.rendering.mask_browser import mask_browser

TIMES = (0, 1000, 2500)
SHAPES = {"fc1": (3, 8, 2), "fc2": (3, 40, 20)}


def write_run(home, name="run", shapes=SHAPES, times=TIMES, policies=3, summary=None, **config):
    """A run folder with random masks; returns pattern_index by time and layer."""
    folder = home / "runs" / "group" / name
    (folder / "patterns").mkdir(parents=True)
    config = {"task": "rolenav", "method": "k24", "seed": 0} | config
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(summary or {}))
    np.savez(folder / "policy.npz", q_values=np.zeros((policies, 1, 2)), avail_actions=np.ones((1, 2)))
    (folder / "DONE").touch()
    rng, index = np.random.default_rng(len(name)), {}
    for t in times:
        index[t] = {layer: rng.integers(6, size=shape).astype(np.uint8) for layer, shape in shapes.items()}
        arrays = {f"{layer}/pattern_index": a for layer, a in index[t].items()}
        arrays |= {f"{layer}/pattern_probs": np.full((*a.shape, 6), 1 / 6) for layer, a in index[t].items()}
        np.savez(folder / "patterns" / f"{t:010d}.npz", **arrays)
    return index


def kept(index):
    """Mask [out, in] of one agent, one group after the other."""
    return np.array([[weight for pattern in row for weight in PATTERNS_24[pattern]] for row in index], dtype=bool)


def drawn(browser):
    """The arrays of the two maps and the lengths of the bars."""
    mask, change, usage = browser.figure.axes
    return mask.images[0].get_array(), change.images[0].get_array(), [bar.get_width() for bar in usage.patches]


def expected_change(now, before):
    codes = np.zeros(now.shape, int)
    for place, is_kept in np.ndenumerate(now):
        codes[place] = (1 if before[place] else 2) if is_kept else (3 if before[place] else 0)
    return codes


def test_begins_with_the_last_snapshot_of_a_square_layer(home):
    index = write_run(home)
    browser = mask_browser("group")
    assert (browser.selection.layer, browser.selection.agent, browser.selection.t_env) == ("fc2", "0", 2500)
    np.testing.assert_array_equal(browser.view.kept, kept(index[2500]["fc2"][0]))
    assert browser.controls["t_env"].options == (("0", 0), ("1,000", 1000), ("2,500", 2500))


def test_moving_the_controls_draws_what_the_files_hold(home):
    index = write_run(home)
    browser = mask_browser("group")
    browser.controls["layer"].value = "fc1"
    browser.controls["agent"].value = "2"
    browser.controls["t_env"].value = 1000
    now, before = (kept(index[t]["fc1"][2]) for t in (1000, 0))
    mask, change, usage = drawn(browser)
    np.testing.assert_array_equal(mask > 0, now)
    np.testing.assert_array_equal(change, expected_change(now, before))
    counts = np.bincount(index[1000]["fc1"][2].ravel(), minlength=6)
    np.testing.assert_allclose(usage, counts / counts.sum())
    owners = sum(kept(index[1000]["fc1"][k]).astype(int) for k in range(3))
    np.testing.assert_array_equal(mask[now], np.select([owners == 1, owners == 3], [1, 3], 2)[now])
    assert bytes(browser.picture.value).startswith(b"\x89PNG")


def test_line_of_numbers_is_counted_over_the_whole_layer(home):
    index = write_run(home)
    browser = mask_browser("group", t_env=1000, agent="1", rows=4, groups=2)
    flips = np.mean(index[1000]["fc2"][1] != index[0]["fc2"][1])
    distance = [np.mean(kept(index[1000]["fc2"][1]) != kept(index[1000]["fc2"][k])) for k in (0, 2)]
    title = browser.figure.get_suptitle()
    assert f"flip rate {flips:.1%} · entropy 1.79 nats" in title
    assert all(f"{far:.2f} (agent {k})" in title for far, k in zip(distance, (0, 2), strict=True))
    assert "fc2 · agent 1 · 1,000 env steps" in title


def test_first_snapshot_has_no_change_and_no_flip_rate(home):
    index = write_run(home)
    browser = mask_browser("group", t_env=0, layer="fc1")
    np.testing.assert_array_equal(drawn(browser)[1], kept(index[0]["fc1"][0]))
    assert "flip rate" not in browser.figure.get_suptitle()
    assert browser.figure.axes[1].get_title() == "first snapshot"


def test_large_layer_is_drawn_in_part_that_moves_and_says_so(home):
    index = write_run(home)
    browser = mask_browser("group", rows=10, groups=5)
    controls = browser.controls
    assert (controls["row"].max, controls["group"].max) == (30, 15)
    controls["row"].value, controls["group"].value = 7, 3
    np.testing.assert_array_equal(drawn(browser)[0] > 0, kept(index[2500]["fc2"][0])[7:17, 12:32])
    ax = browser.figure.axes[0]
    assert ax.get_ylabel() == "output units 7 to 16 of 40" and ax.get_xlabel() == "input units 12 to 31 of 80"
    assert ax.get_title() == "kept by this agent (part of the layer)"
    assert tuple(ax.images[0].get_extent()) == (12, 32, 17, 7)
    controls["layer"].value = "fc1"  # smaller than the window in both directions
    assert controls["row"].max == 0 and drawn(browser)[0].shape == (8, 8)
    assert browser.figure.axes[0].get_title() == "kept by this agent"


def test_another_run_keeps_what_it_can_of_the_selection(home):
    write_run(home)
    other = write_run(home, "other", {"fc1": (3, 8, 2), "fc3": (3, 8, 2)}, times=(0, 900, 1800), seed=1)
    browser = mask_browser("group", agent="2", t_env=1000, run="k24, seed 0")
    browser.controls["run"].value = "k24, seed 1"
    assert browser.selection._asdict() == {
        **{"run": "k24, seed 1", "layer": "fc1", "agent": "2", "t_env": 900, "row": 0, "group": 0}
    }
    assert browser.controls["layer"].options == ("fc1", "fc3")
    np.testing.assert_array_equal(browser.view.kept, kept(other[900]["fc1"][2]))


def test_masks_of_unit_types_have_their_names(home):
    write_run(home, mask_per="type", summary={"unit_type_names": ["marine", "medic", "zealot"]})
    browser = mask_browser("group", agent="medic")
    assert browser.controls["agent"].options == ("marine", "medic", "zealot")
    assert browser.controls["agent"].description == "unit type"
    assert "unit type medic" in browser.figure.get_suptitle()


def test_run_that_still_trains_can_be_browsed_and_its_next_snapshot_appears(home):
    index = write_run(home)
    folder = home / "runs" / "group" / "run"
    for name in ("DONE", "summary.json", "policy.npz"):
        (folder / name).unlink()
    browser = mask_browser("group")
    assert browser.choices.agents == ["0", "1", "2"]
    np.savez(folder / "patterns" / "0000003000.npz", **np.load(folder / "patterns" / "0000001000.npz"))
    browser.controls["t_env"].value = 0
    browser.controls["t_env"].value = 3000
    np.testing.assert_array_equal(browser.view.kept, kept(index[1000]["fc2"][0]))


def test_many_agents_have_a_mean_and_the_ends():
    index = np.zeros((8, 1, 1), dtype=np.uint8)
    index[7] = 5  # keeps what no other keeps
    view = mask_view(Patterns(index, np.full((8, 1, 1, 6), 1 / 6)), None, 0)
    line = describe(view, 0, [str(k) for k in range(8)])
    assert line.endswith("distance to the others: 0.00 (agent 1) to 1.00 (agent 7)")
    single = mask_view(Patterns(index[:1], np.full((1, 1, 1, 6), 1 / 6)), None, 0)
    assert describe(single, 0, ["0"]) == "entropy 1.79 nats"


def test_table_holds_what_is_drawn(home):
    index = write_run(home)
    table = mask_browser("group", t_env=1000, rows=3, groups=2, row=1).table()
    now, before = (kept(index[t]["fc2"][0])[1:4, :8] for t in (1000, 0))
    names = np.array(["none", "kept", "added", "dropped"])[expected_change(now, before)]
    assert table["change"].tolist() == names.ravel().tolist()
    assert table["output"].tolist() == np.repeat([1, 2, 3], 8).tolist()
    assert set(table["t_env"]) == {1000}


def test_notebook_gets_controls_and_a_picture_for_where_they_cannot_be_shown(home):
    write_run(home)
    browser = mask_browser("group").select(t_env=1000)
    bundle = browser._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert browser.selection.t_env == 1000


def test_methods_without_masks_are_named_beside_those_that_have_some(home):
    write_run(home, "shared", method="fups")
    for path in (home / "runs" / "group" / "shared" / "patterns").iterdir():
        path.unlink()
    with pytest.raises(
        RunError, match=r"none of 1 runs has masks .*\(methods: fups\); methods that have: k24,.*random24"
    ):
        mask_browser("group")
    write_run(home)
    assert list(mask_browser("group").runs) == ["k24, seed 0"]
    assert list(mask_browser(find_runs("group", method="k24")[0]).runs) == ["k24, seed 0"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": "fc3"}, r"unknown layer 'fc3'; did you mean 'fc\d'\? \(allowed: fc1, fc2\)"),
        ({"agent": "3"}, r"unknown agent '3'.*allowed: 0, 1, 2"),
        ({"run": "k24, seed 1"}, r"unknown run 'k24, seed 1'; did you mean 'k24, seed 0'"),
        ({"time": 3}, r"unknown field 'time'.*allowed: agent, group, layer, row, run, t_env"),
    ],
)
def test_wrong_names_are_told_the_right_ones(home, given, message):
    write_run(home)
    with pytest.raises(RunError, match=message):
        mask_browser("group", **given)


def test_damaged_snapshot_is_named_and_the_view_stays(home):
    write_run(home)
    browser = mask_browser("group")
    (home / "runs" / "group" / "run" / "patterns" / "0000000000.npz").write_bytes(b"no archive")
    browser.controls["t_env"].value = 0
    assert "0000000000.npz cannot be read" in browser.problem.value
    assert browser.selection.t_env == 2500
    browser.controls["layer"].value = "fc1"
    assert browser.problem.value == "" and browser.selection.layer == "fc1"


def test_redraws_keep_no_figure(home):
    write_run(home, shapes={"fc2": (8, 256, 64)})
    browser = mask_browser("group")
    for t in (0, 1000, 2500) * 2:
        browser.controls["t_env"].value = t
    assert plt.get_fignums() == []


def test_the_same_view_is_the_same_figure(home):
    write_run(home)
    with paper_style():
        assert mask_browser("group").picture.value == mask_browser("group").picture.value
