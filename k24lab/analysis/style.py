"""One look for every figure (fonts and sizes: paper.mplstyle), colours by method, files that are the same each time."""

import dataclasses
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from k24lab.errors import ConfigError
from k24lab.lab.files import atomic_write
from k24lab.lab.find_runs import Run
from k24lab.lab.paths import figures_dir
from k24lab.methods import METHODS

TEXT_WIDTH = 5.5  # inches, NeurIPS text block
HALF_WIDTH = 2.7  # inches, two figures side by side
ROW_HEIGHT = 1.9  # inches, one row of panels
PNG_DPI = 200
PLAIN_NAME = "[A-Za-z0-9_=-][A-Za-z0-9_.=-]*"  # of a file or folder
SCREEN_DPI = 150
TITLE_LETTERS = 100  # of a title over the width of the text
RASTER_DPI = 300  # of heatmaps inside a PDF, whose text and lines stay vectors

# Okabe & Ito (2008), colours that colour-blind readers can tell apart.
OKABE_ITO: dict[str, str] = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
_COLORS = [OKABE_ITO[name] for name in ("blue", "vermillion", "green", "purple", "orange", "sky", "black")]
GREY = "#7F7F7F"  # reference lines

_MANY_COLORS = [*_COLORS, "#8C6D31", "#5D3A9B", "#999933", "#882255", GREY]
MOST_SHADES = 4  # of one colour that can be told apart
_MORE_LINES: tuple[tuple[str, str], ...] = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))


@dataclass(frozen=True)
class LineStyle:
    """How one method looks: the line style and marker tell it apart where the colour does not print."""

    label: str
    color: str
    linestyle: str | tuple[int, tuple[int, ...]] = "-"
    marker: str = "o"


METRIC_LABEL: dict[str, str] = {
    "test_return_mean": "test return",
    "return_mean": "training return",
    "pattern_entropy": "pattern entropy (nats)",
    "mask_flip_rate": "flip rate (share)",
    "pattern_mean_similarity": "probability similarity",
    "train_eval_gap": "train-eval gap (share)",
    "dead_units": "dead units (share)",
    "alpha_grad_td": "gradient to α, TD loss",
    "alpha_grad_div": "gradient to α, diversity",
    "test_battle_won_mean": "test win rate",
    "loss_td": "TD loss",
    "q_taken_mean": "Q of the chosen actions",
    "target_mean": "target of Q",
    "td_error_abs": "|TD error|",
    "env_steps_per_s": "env steps per second",
}


def metric_label(metric: str) -> str:
    """Axis label of a logged quantity, with its unit; its name in words if it has no entry."""
    return METRIC_LABEL.get(metric, metric.replace("_", " "))


def method_style(method: str) -> LineStyle:
    """Style of a method; one that the package does not have gets its own name in grey."""
    if method not in METHODS:
        return LineStyle(method, GREY)
    look = METHODS[method]
    return LineStyle(look.label, look.color, look.linestyle, look.marker)


def run_title(run: Run, shown: str = "") -> str:
    """Title of a picture of a run: method, seed, what of it is `shown`, and its id (a long one in a second line)."""
    parts = [method_style(str(run.config.get("method"))).label, f"seed {run.config.get('seed')}", shown]
    said = ", ".join(part for part in parts if part)
    between = " " if len(said) + len(run.id) < TITLE_LETTERS else "\n"
    return f"{said}{between}({run.id})"


def variant_styles(variants: Iterable[str]) -> dict[str, LineStyle]:
    """A style per variant name (`find_runs.variants`), in the order of `METHODS`, so that legends agree.

    A method's first variant looks like the method, later ones get another line and marker and, if there are few of
    them, a lighter colour; of many, or if there is no other method, each gets a colour that is no method's here.
    Labels name the fields that vary.
    """
    known, methods = list(METHODS), {variant: variant.split(" ")[0] for variant in variants}
    order = sorted(methods, key=lambda v: (known.index(methods[v]) if methods[v] in known else len(known), v))
    present, seen = Counter(methods.values()), Counter[str]()
    spare = [color for color in _MANY_COLORS if color not in {method_style(method).color for method in present}]
    styles = {}
    for variant in order:
        method, _, fields = variant.partition(" ")
        base, rank = method_style(method), seen[method]
        seen[method] += 1
        label = f"{base.label} ({fields.replace(' ', ', ')})" if fields else base.label
        if rank == 0:
            styles[variant] = dataclasses.replace(base, label=label)
            continue
        many = present[method] > MOST_SHADES or len(present) == 1
        turn, place = divmod(rank - 1, len(spare))  # where a colour comes again, its line is another
        line, marker = _MORE_LINES[(1 + turn + place) % len(_MORE_LINES)]
        styles[variant] = LineStyle(
            label, spare[place] if many else paler(base.color, max(0.75**rank, 0.35)), line, marker
        )
    return styles


def paler(color: str, share: float) -> str:
    """The colour mixed with white: a share of 1 leaves it as it is."""
    red, green, blue = (1 - (1 - c) * share for c in to_rgb(color))
    return to_hex((red, green, blue)).upper()


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw with `paper.mplstyle` in the block; nothing outside it changes."""
    with mpl.style.context("k24lab.analysis.paper"):
        yield


def save_figure(
    fig: Figure, name: str, data: pd.DataFrame, folder: str | os.PathLike[str] | None = None
) -> dict[str, Path]:
    """Write `name.pdf`, `name.png` (200 dpi) and `name.csv` (the numbers shown); return the three paths by suffix.

    The same figure and data give the same bytes: no dates, no version strings. Each file appears whole or not at all.
    `folder` is made if need be and defaults to `figures_dir()`; `name` is a plain file name, or one in a folder,
    `study/name` (else a ConfigError).
    """
    paths = {suffix: _save(render(fig, suffix), f"{name}.{suffix}", folder) for suffix in ("pdf", "png")}
    return paths | {"csv": save_table(data, name, folder)}


def save_table(data: pd.DataFrame, name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Write `name.csv` under the same rules as `save_figure`."""
    return save_text(data.to_csv(index=False, lineterminator="\n"), f"{name}.csv", folder)


def save_text(text: str, file_name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Write a text file (a table for LaTeX, an export) under the same rules as `save_figure`."""
    return _save(text.encode(), file_name, folder)


def _save(content: bytes, file_name: str, folder: str | os.PathLike[str] | None) -> Path:
    if not re.fullmatch(rf"({PLAIN_NAME}/)?{PLAIN_NAME}", file_name):
        raise ConfigError(f"figure name {file_name!r}: use letters, digits and _ - . = only, in one folder at most")
    path = (Path(folder) if folder is not None else figures_dir()) / file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(content)
    return path


def screen_png(fig: Figure) -> bytes:
    """The figure as it is shown while something changes, at its own resolution: `savefig` would draw it twice."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def render(fig: Figure, suffix: str) -> bytes:
    """Bytes of the figure; fonts embedded as TrueType also when saved outside `paper_style`."""
    dated = ("CreationDate", "ModDate", "Creator", "Producer") if suffix == "pdf" else ("Software",)
    buffer = io.BytesIO()
    with mpl.rc_context({"pdf.fonttype": 42}):
        dpi = PNG_DPI if suffix == "png" else RASTER_DPI
        fig.savefig(buffer, format=suffix, dpi=dpi, metadata=dict.fromkeys(dated))
    return buffer.getvalue()
