"""Where something that changes is shown: outputs of a notebook that are updated in place, or lines of text."""

import base64
import time
import uuid
from typing import Any

from matplotlib.figure import Figure

from k24lab.analysis.style import screen_png


class Notebook:
    """Two outputs of the running cell; a copy of the notebook keeps them as they were last."""

    figures = True  # can be shown

    def __init__(self) -> None:
        self._ids = (uuid.uuid4().hex, uuid.uuid4().hex)
        self._shown = False

    def show(self, figure: Figure | None, headline: str, lines: list[str]) -> None:
        """Draw the figure and write the lines under it."""
        from IPython.display import display

        picture: dict[str, Any] = {"text/plain": headline}
        if figure is not None:
            picture["image/png"] = base64.b64encode(screen_png(figure)).decode()
        for id_, bundle in zip(self._ids, (picture, {"text/plain": "\n".join([headline, *lines])}), strict=True):
            display(bundle, raw=True, display_id=id_, update=self._shown)
        self._shown = True


class Lines:
    """A line of text for each change."""

    figures = False  # none need be drawn

    def show(self, figure: Figure | None, headline: str, lines: list[str]) -> None:
        """Print the headline, and the lines in the same line."""
        print(time.strftime("%H:%M:%S"), headline, *[f"| {' '.join(line.split())}" for line in lines], flush=True)


def make_screen() -> Notebook | Lines:
    """A notebook's outputs in a kernel, lines in any other Python."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return Lines()
    return Notebook() if hasattr(get_ipython(), "kernel") else Lines()
