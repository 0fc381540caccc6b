"""One HTML page that holds everything it shows: no file beside it, nothing loaded from elsewhere."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from k24lab.analysis.style import render

STYLE = """
body { font: 15px/1.45 Georgia, "Times New Roman", serif; color: #111; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
figure { margin: 1rem 0; }
img { width: 100%; max-width: 46rem; height: auto; display: block; margin: .6rem 0; }
figcaption, .note { color: #444; font-size: .93em; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9em; margin: .6rem 0; }
th, td { padding: .15rem .6rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.failed { color: #a00; }
nav a { margin-right: 1rem; }
"""


class Section(NamedTuple):
    """A heading and what stands under it, as HTML."""

    title: str
    parts: Sequence[str]


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page; sections without parts are left out."""
    shown = [section for section in sections if section.parts]
    links = " ".join(f'<a href="#{_anchor(s.title)}">{escape(s.title)}</a>' for s in shown)
    body = [f'<h2 id="{_anchor(s.title)}">{escape(s.title)}</h2>\n' + "\n".join(s.parts) for s in shown]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{note(lead)}\n<nav>{links}</nav>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def escape(value: object) -> str:
    """Text that a browser shows as it is, whatever a task, an error or a file is called."""
    return html.escape(str(value))


def note(text: str, css: str = "note") -> str:
    """A paragraph of plain text."""
    return f'<p class="{css}">{escape(text)}</p>'


def figure(shown: Figure | Axes, caption: str) -> str:
    """A figure (that of some axes), embedded, with how to read it; the figure is closed."""
    fig = shown if isinstance(shown, Figure) else shown.get_figure(root=True)
    assert fig is not None
    data = base64.b64encode(render(fig, "png")).decode()
    plt.close(fig)
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def table(data: pd.DataFrame, digits: int = 3) -> str:
    """A table; numbers to the right, rounded, missing ones empty."""
    numeric = [pd.api.types.is_numeric_dtype(data[column]) for column in data]
    head = "".join(_cell("th", str(column), right) for column, right in zip(data, numeric, strict=True))
    rows = [
        "<tr>" + "".join(_cell("td", _shown(x, digits), right) for x, right in zip(row, numeric, strict=True)) + "</tr>"
        for row in data.itertuples(index=False)
    ]
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n' + "\n".join(rows) + "\n</table></div>"


def pairs(values: Mapping[str, Any]) -> str:
    """Names and values, a line each."""
    rows = [f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in values.items()]
    return '<div class="scroll"><table>\n' + "\n".join(rows) + "\n</table></div>"


def folded(title: str, content: str) -> str:
    """HTML that a click unfolds."""
    return f"<details><summary>{escape(title)}</summary>\n{content}\n</details>"


def _cell(tag: str, text: str, right: bool) -> str:
    kind = ' class="number"' if right else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def _shown(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.{digits}f}"
    return "" if value is None else str(value)


def _anchor(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower())
