"""Figures: same bytes when made again, fonts that venues accept, and what the marks on the axes stand for."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

from k24lab.analysis import comparison_plots, curve_plots as plots, mask_plots, similarity, stats, style
from k24lab.core.pattern_table import PATTERN_NAMES
from k24lab.errors import ConfigError
from k24lab.lab.find_runs import Run
from k24lab.methods import METHODS


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture
def curves():
    rows = [
        {"task": "rolenav", "variant": v, "run": f"{v}{seed}", "t_env": t, "value": t / 1000 + seed + (v == "nops")}
        for v in ("nops", "k24")
        for seed in range(3)
        for t in (0, 1000, 2000)
    ]
    return stats.curves(pd.DataFrame(rows), "value")


@pytest.fixture
def index():
    return np.random.default_rng(0).integers(6, size=(3, 20, 10)).astype(np.uint8)


def labels(ax):
    return ax.get_legend_handles_labels()[1]


def draw_everything(curves, index):
    """A figure with text, lines, a band, mathematics and a rasterized heatmap."""
    fig, (left, right) = plots.panels(2)
    plots.learning_curves(curves, left, ylabel=r"return $\alpha$", references={"bound": 2.0})
    mask_plots.mask_map(index, right, rows=4, groups=2)
    plots.shared_legend(fig)
    return fig


def test_the_same_figure_gives_the_same_bytes(curves, index, tmp_path):
    made = []
    for k in range(2):
        with style.paper_style():
            files = style.save_figure(draw_everything(curves, index), "f", curves, tmp_path / str(k))
        made.append({suffix: path.read_bytes() for suffix, path in files.items()})
    assert made[0] == made[1]
    assert set(made[0]) == {"pdf", "png", "csv"}
    assert made[0]["csv"].startswith(b"task,variant,t_env,mean,low,high,n\n")
    assert b"CreationDate" not in made[0]["pdf"]


@pytest.mark.parametrize("styled", [True, False])
def test_pdf_fonts_are_truetype(curves, index, tmp_path, styled):
    if styled:
        with style.paper_style():
            files = style.save_figure(draw_everything(curves, index), "f", curves, tmp_path)
    else:
        files = style.save_figure(draw_everything(curves, index), "f", curves, tmp_path)
    pdf = files["pdf"].read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf


def test_png_is_text_width_at_200_dpi(curves, index, tmp_path):
    with style.paper_style():
        files = style.save_figure(draw_everything(curves, index), "f", curves, tmp_path)
    height, width = plt.imread(files["png"]).shape[:2]
    assert width == int(style.TEXT_WIDTH * 200)
    assert style.ROW_HEIGHT * 200 < height < (style.ROW_HEIGHT + 1) * 200  # the panels, and the legend below them


def test_saving_leaves_three_files_and_no_temporary_one(curves, tmp_path):
    fig = plots.learning_curves(curves).figure
    for _ in range(2):  # the second time over the first
        style.save_figure(fig, "05_demo=1.curves", curves, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"05_demo=1.curves.{s}" for s in ("csv", "pdf", "png")]


def test_a_reader_of_the_old_file_never_sees_half_of_the_new_one(curves, tmp_path):
    path = style.save_table(curves, "t", tmp_path)
    before = path.read_bytes()
    with path.open("rb") as reader:
        style.save_table(curves[:1], "t", tmp_path)
        assert reader.read() == before
    assert len(pd.read_csv(path)) == 1


def test_figures_of_a_study_go_to_its_folder(curves, tmp_path):
    assert style.save_table(curves, "study/t", tmp_path) == tmp_path / "study" / "t.csv"
    assert (tmp_path / "study" / "t.csv").is_file()


def test_figures_go_to_the_figures_folder_by_default(curves, tmp_path, monkeypatch):
    monkeypatch.setenv("K24LAB_HOME", str(tmp_path))
    assert style.save_table(curves, "t") == tmp_path / "figures" / "t.csv"
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "figures" / "t.csv"), curves, check_dtype=False)


@pytest.mark.parametrize("name", ["a/b/c", "../up", "a/.b", "/a", "a/", "", ".hidden", "a b", "x\\y", "c\n"])
def test_figure_names_that_are_no_plain_ones_are_refused(name, curves, tmp_path):
    with pytest.raises(ConfigError, match="figure name"):
        style.save_table(curves, name, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_paper_style_ends_with_its_block():
    before = plt.rcParams["font.size"], plt.rcParams["pdf.fonttype"]
    with style.paper_style():
        assert (plt.rcParams["font.size"], plt.rcParams["pdf.fonttype"]) == (8.0, 42)
    assert (plt.rcParams["font.size"], plt.rcParams["pdf.fonttype"]) == before


def test_methods_differ_in_more_than_colour():
    methods = [style.method_style(method) for method in METHODS]
    looks = [(s.linestyle, s.marker) for s in methods]
    assert len(set(looks)) == len(looks)
    assert len({s.color for s in methods}) == len(looks)


def test_variant_styles_keep_the_methods_look_and_tell_variants_apart():
    styles = style.variant_styles(["nops", "k24 hidden_dim=64", "k24 hidden_dim=16", "mine"])
    assert list(styles) == ["k24 hidden_dim=16", "k24 hidden_dim=64", "nops", "mine"]
    assert styles["nops"] == style.method_style("nops")
    small, large = styles["k24 hidden_dim=16"], styles["k24 hidden_dim=64"]
    assert (small.label, small.color) == ("K-2:4 (hidden_dim=16)", style.method_style("k24").color)
    assert sum(to_rgb(large.color)) > sum(to_rgb(small.color))
    assert styles["mine"].label == "mine"
    many = style.variant_styles(["random24", "k24", *(f"k24 seedless={k}" for k in range(8))])
    assert many["k24"] == style.method_style("k24") and many["random24"] == style.method_style("random24")
    assert len({s.color for s in many.values()}) == 10
    crowd = style.variant_styles(["random24", "k24", "k24-alpha", *(f"k24 seedless={k}" for k in range(30))])
    assert len({(s.color, s.linestyle, s.marker) for s in crowd.values()}) == 33
    alone = style.variant_styles([f"k24 seedless={k}" for k in range(5)])
    assert len({s.color for s in alone.values()}) == 5


def test_learning_curves_draw_means_bands_and_references(curves):
    ax = plots.learning_curves(curves, title="rolenav", references={"bound": 9.0})
    assert labels(ax) == ["K-2:4", "separate networks"]
    assert ax.get_title() == "rolenav, n = 3 seeds"
    k24 = ax.get_lines()[0]
    assert np.column_stack(k24.get_data()).tolist() == [[0, 1], [1000, 2], [2000, 3]]
    assert len([drawn for drawn in ax.collections if not isinstance(drawn, LineCollection)]) == 2
    assert ax.get_ylim()[1] >= 9.0
    assert "bound" in [text.get_text() for text in ax.texts]


def test_bands_of_few_seeds_do_not_flatten_the_lines():
    wide = pd.DataFrame({"variant": "k24", "t_env": [0, 1], "mean": [0.0, 1.0], "low": -90.0, "high": 90.0, "n": 3})
    assert plots.learning_curves(wide).get_ylim() == pytest.approx((-0.3, 1.3))
    assert plots.learning_curves(wide.assign(n=2)).get_ylim() == pytest.approx((-0.04, 1.04))  # no band at all
    narrow = wide.assign(low=[-0.1, 0.9], high=[0.1, 1.1])
    assert plots.learning_curves(narrow).get_ylim() == pytest.approx((-0.14, 1.14))


def test_a_flat_line_is_no_error():
    flat = pd.DataFrame({"variant": "k24", "t_env": [0, 1], "mean": 0.0, "low": 0.0, "high": 0.0, "n": 1})
    assert plots.learning_curves(flat).get_ylim() == pytest.approx((-0.04, 0.04))  # wins none, as long as it trains


def test_more_than_eight_variants_have_intervals_at_the_end_in_place_of_bands():
    one = pd.DataFrame({"t_env": [0, 100], "mean": [0.0, 1.0], "low": [-0.1, 0.9], "high": [0.1, 1.2], "n": 3})
    for count, limits in ((8, (-0.14, 1.24)), (9, (-0.04, 1.24))):
        curves = pd.concat([one.assign(variant=f"k24 seedless={k}") for k in range(count)])
        ax = plots.learning_curves(curves)
        assert len([line for line in ax.get_lines() if line.get_linestyle() != "None"]) == count
        assert ax.get_ylim() == pytest.approx(limits)
    bars = [drawn for drawn in ax.collections if isinstance(drawn, LineCollection)]
    whiskers = [each.get_segments()[0].tolist() for each in bars]
    assert [top for _, (_, top) in whiskers] == [1.2] * 9 and [low for (_, low), _ in whiskers] == [0.9] * 9
    places = [x for (x, _), _ in whiskers]
    assert places == sorted(set(places)) and 100 < places[0] < places[-1] < 117


def test_lines_upon_each_other_have_their_markers_apart_and_their_ends_side_by_side(curves):
    upon = pd.concat([curves[curves["variant"] == "k24"].assign(variant=name) for name in ("k24", "fups", "nops")])
    dense = pd.concat([upon.assign(t_env=upon["t_env"] + 3000 * k) for k in range(16)]).sort_values("t_env")
    ax = plots.learning_curves(dense)
    starts = [line.get_markevery()[0] for line in ax.get_lines() if line.get_linestyle() != "None"]
    assert len(set(starts)) == 3
    ends = [line.get_xydata()[0] for line in ax.get_lines() if line.get_linestyle() == "None"]
    assert [mean for _, mean in ends] == [3.0, 3.0, 3.0]
    assert dense["t_env"].max() < ends[0][0] < ends[1][0] < ends[2][0]
    assert max(ax.get_xticks()) <= dense["t_env"].max()  # what lies behind is no time
    alone = plots.learning_curves(curves[curves["variant"] == "k24"])
    assert len(alone.get_lines()) == 1


def test_a_reference_far_from_the_runs_is_named_under_the_axis():
    scores = pd.DataFrame({"variant": ["k24"] * 3, "test_return_mean": [2.0, 3.0, 4.0]})
    ax = comparison_plots.final_returns(scores, references={"optimum": 5.0, "random": -90.0})
    assert [text.get_text() for text in ax.texts] == ["optimum"]
    assert ax.get_xlabel() == "final test return (outside: random \N{MINUS SIGN}90.00)"
    assert ax.get_xlim()[0] > -10


def test_maps_are_titled_by_run_method_layer_and_seed(index):
    run = Run(Path("runs/g/rolenav-k24-s3-ab"), {"method": "k24", "seed": 3}, True)
    ax = mask_plots.mask_map(index, title=style.run_title(run, "layer fc2"))
    assert ax.get_title() == "K-2:4, seed 3, layer fc2 (rolenav-k24-s3-ab)"
    long = Run(Path("runs") / ("r" * 90), {"method": "fups", "seed": 0}, True)
    assert style.run_title(long) == f"shared, seed 0\n({'r' * 90})"


def test_usage_maps_mark_an_even_use_as_white():
    shares = {"fc1": np.full((2, 6), 1 / 6), "fc2": np.eye(6)[:2]}
    fig = mask_plots.usage_maps(shares, "a run")
    bar = fig.axes[-1]
    assert [ax.get_title() for ax in fig.axes[:2]] == ["fc1", "fc2"] and fig.get_suptitle() == "a run"
    at = dict(zip([label.get_text() for label in bar.get_yticklabels()], bar.get_yticks(), strict=True))
    assert at["1/6 (even)"] == pytest.approx(1 / 6)
    heat = fig.axes[0].collections[0]
    assert heat.cmap(heat.norm(1 / 6))[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.01)


def test_a_single_run_is_drawn_without_a_band():
    one = pd.DataFrame({"variant": "k24", "t_env": [0, 1], "mean": [0.0, 1.0], "low": np.nan, "high": np.nan, "n": 1})
    ax = plots.learning_curves(one)
    assert ax.get_title() == "n = 1 seed"
    assert np.isfinite(ax.get_ylim()).all()


def test_final_returns_show_every_seed_and_put_the_best_on_top():
    scores = pd.DataFrame({"variant": ["fups", "k24", "k24", "k24"], "test_return_mean": [1.0, 2.0, 3.0, 4.0]})
    ax = comparison_plots.final_returns(scores, references={"optimum": 5.0})
    shown = [tick.get_text().replace("\N{NO-BREAK SPACE}", " ") for tick in ax.get_yticklabels()]
    assert shown == ["K-2:4 (n = 3)", "shared (n = 1)"] and ax.yaxis_inverted()
    seeds = [dots.get_offsets().tolist() for dots in ax.collections if len(dots.get_offsets())]
    assert seeds == [[[2.0, 0.27], [3.0, 0.27], [4.0, 0.27]], [[1.0, 1.27]]]
    marks = [line.get_xydata() for line in ax.get_lines() if line.get_marker() not in ("", "None")]
    assert [xy[np.isfinite(xy).all(axis=1)].tolist() for xy in marks] == [[[3.0, 0.0]], [[1.0, 1.0]]]
    bars = [line.get_xydata() for line in ax.get_lines() if line.get_solid_capstyle() == "butt"]
    ends = [xy[:, 0].tolist() for xy in bars if np.isfinite(xy).all()]  # none of a single seed
    assert ends == [pytest.approx([3 - 2.484138, 3 + 2.484138], abs=1e-6)]


def test_layer_lines_draw_every_layer_and_all_together():
    rows = [{"t_env": t, "layer": layer, "entropy": 1.0} for layer in ("fc1", "fc2", "all") for t in (0, 1)]
    ax = plots.layer_lines(pd.DataFrame(rows), "entropy", references={"chance": similarity.MAX_ENTROPY})
    assert labels(ax) == ["fc1", "fc2", "all layers"]
    assert ax.get_ylim()[1] >= similarity.MAX_ENTROPY


def test_pair_scatter_draws_every_pair(curves):
    pairs = pd.DataFrame({"variant": ["k24", "k24", "random24"], "hamming": [0.4, 0.5, 0.6], "greedy": [0.1, 0.2, 0.3]})
    ax = comparison_plots.pair_scatter(pairs, "hamming", "greedy", chance=0.5)
    assert sum(len(dots.get_offsets()) for dots in ax.collections) == 3
    assert comparison_plots.pair_scatter(pairs[:0], "hamming", "greedy").get_legend() is None


def test_panels_hide_the_spare_ones():
    fig, axes = plots.panels(5, n_columns=3)
    assert (len(axes), len(fig.axes), fig.axes[5].axison) == (5, 6, False)


def test_lines_of_panels_have_heights_of_their_own():
    fig, (low, high) = plots.panels(2, n_columns=1, height=[1.0, 3.0])
    assert fig.get_figheight() == 4
    assert high.get_position().height == pytest.approx(3 * low.get_position().height)


@pytest.mark.parametrize("length", [3, 25, 60])
def test_shared_legend_has_each_label_once_and_fits(length):
    with style.paper_style():
        fig, axes = plots.panels(2)
        for ax in axes:
            for k in range(5):
                ax.plot([0, 1], label=str(k) + "n" * length)
        legend = plots.shared_legend(fig).legends[0]
        fig.canvas.draw()
    assert len(legend.get_texts()) == 5
    assert legend.get_window_extent().width <= fig.bbox.width


def blocks(ax, n_masks, rows, columns):
    """What stands under the name of each agent, cut out of the one image."""
    (mesh,) = [mesh for mesh in ax.collections if hasattr(mesh, "get_coordinates")]
    shown = np.ma.filled(mesh.get_array().astype(float), np.nan).reshape(mesh.get_coordinates().shape[0] - 1, -1)
    assert np.isfinite(shown).sum() == n_masks * rows * columns
    corners = [(round(text.get_position()[1] + 0.3), round(text.get_position()[0] - columns / 2)) for text in ax.texts]
    assert [text.get_text() for text in ax.texts] == [f"agent {k}" for k in range(n_masks)]
    return np.stack([shown[y : y + rows, x : x + columns] for y, x in corners])


def test_mask_map_colours_a_kept_weight_by_the_number_of_its_owners(index):
    kept = similarity.masks(index[:, :4, :2])
    ax = mask_plots.mask_map(index, rows=4, groups=2)
    np.testing.assert_array_equal(blocks(ax, 3, 4, 8), kept * kept.sum(axis=0))
    bar = ax.collections[-1].colorbar.ax
    assert [label.get_text() for label in bar.get_yticklabels()] == ["dropped", "1", "2", "3"]


def test_pattern_map_shows_the_indices_as_six_colours(index):
    ax = mask_plots.pattern_map(index, rows=99, groups=99)
    np.testing.assert_array_equal(blocks(ax, 3, 20, 10), index)
    assert ax.collections[-1].cmap.N == len(set(mask_plots.PATTERN_COLORS)) == 6
    assert ax.get_ylabel() == "first 20 output units"
    many = np.concatenate([index, index[::-1]])  # two lines of agents
    np.testing.assert_array_equal(blocks(mask_plots.pattern_map(many), 6, 16, 10), many[:, :16])


def test_maps_write_their_numbers():
    ax = mask_plots.matrix_map(np.array([[0.0, 0.25], [0.25, 0.0]]), title="Hamming distance")
    assert [text.get_text() for text in ax.texts] == ["0.00", "0.25", "0.25", "0.00"]
    usage = mask_plots.share_map(np.array([[0.5, 0.5, 0, 0, 0, 0]]), columns=PATTERN_NAMES, chance=1 / 6)
    assert [text.get_text() for text in usage.texts] == ["50%", "50%", "0%", "0%", "0%", "0%"]
    assert [label.get_text() for label in usage.get_xticklabels()] == list(PATTERN_NAMES)
    assert usage.collections[0].get_clim() == (0, pytest.approx(1 / 3))


def test_functions_draw_on_the_axes_they_are_given(curves, index):
    _, axes = plots.panels(3)
    assert plots.learning_curves(curves, axes[0]) is axes[0]
    assert mask_plots.pattern_map(index, axes[1]) is axes[1]
    assert mask_plots.matrix_map(np.eye(2), axes[2]) is axes[2]
    assert len(plt.get_fignums()) == 1


def test_share_map_writes_every_share_under_its_action():
    ax = mask_plots.share_map(np.array([[0.25, 0.75], [1.0, 0.0]]), labels=["marine", "zealot"])
    assert [text.get_text() for text in ax.texts] == ["25%", "75%", "100%", "0%"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["marine", "zealot"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1"]


def test_matrix_map_of_types_has_their_names_on_both_axes():
    ax = mask_plots.matrix_map(np.eye(2), labels=["marine", "zealot"], of="unit type")
    assert ax.get_xlabel() == ax.get_ylabel() == "unit type"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["marine", "zealot"]
