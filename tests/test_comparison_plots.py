import itertools

import matplotlib

matplotlib.use("Agg")
import pandas as pd

from k24lab.analysis import comparison_plots, style


def test_long_labels_of_final_returns_do_not_touch():
    settings = "alpha_lr_factor=10.0 score_ema_power=0.0 score_weight_power=0.0"
    variants = [f"k24 {settings} noise={noise}" for noise in ("none", "literal", "annealed")]
    with style.paper_style():
        ax = comparison_plots.final_returns(pd.DataFrame({"variant": variants, "test_return_mean": [1.0, 2.0, 3.0]}))
        ax.figure.canvas.draw()
        boxes = [tick.get_window_extent() for tick in ax.get_yticklabels()]
    assert all(tick.get_text().count("\n") >= 2 for tick in ax.get_yticklabels())
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
