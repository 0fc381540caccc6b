"""The widgets of a `MaskBrowser`; importing this needs ipywidgets, and nothing else imports it."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from k24lab.analysis.load import kind
from k24lab.analysis.style import SCREEN_DPI, TEXT_WIDTH
from k24lab.errors import RunError

if TYPE_CHECKING:
    from k24lab.rendering.browser import MaskBrowser

FRAME_MS = 400  # of a film through the snapshots
WIDE = {"description_width": "5em"}


class Controls:
    """Dropdowns and sliders that change a browser's selection, and the picture of it."""

    def __init__(self, browser: "MaskBrowser"):
        self.browser, self._following = browser, False
        self.run = widgets.Dropdown(description="run", layout={"width": "32em"}, style=WIDE)
        self.layer = widgets.Dropdown(description="layer", layout={"width": "16em"}, style=WIDE)
        self.agent = widgets.Dropdown(layout={"width": "16em"}, style=WIDE)
        self.t_env = widgets.SelectionSlider(options=[0], description="env steps", layout={"width": "32em"}, style=WIDE)
        self.film = widgets.Play(interval=FRAME_MS, show_repeat=False)
        self.row = widgets.IntSlider(description="first row", layout={"width": "24em"}, style=WIDE)
        self.group = widgets.IntSlider(description="first group", layout={"width": "24em"}, style=WIDE)
        width = f"{TEXT_WIDTH * SCREEN_DPI:.0f}px"  # its own: stretched over the cell it blurs
        self.picture, self.problem = widgets.Image(format="png", layout={"width": width}), widgets.Label()
        lines = [[self.run, self.layer, self.agent], [self.t_env, self.film], [self.row, self.group]]
        self.box = widgets.VBox([*map(widgets.HBox, lines), self.problem, self.picture])
        widgets.link((self.film, "value"), (self.t_env, "index"))
        for field in ("run", "layer", "agent", "t_env", "row", "group"):
            getattr(self, field).observe(functools.partial(self._chosen, field), "value")

    def follow(self) -> None:
        """Show the browser's selection, and what else could be chosen."""
        browser, now = self.browser, self.browser.selection
        times, (n_out, n_groups) = browser.times(), browser.shape()
        self._following = True
        try:
            self.agent.description = kind(browser.runs[now.run])
            for dropdown, options in (
                (self.run, list(browser.runs)),
                (self.layer, browser.layers()),
                (self.agent, browser.agents()),
            ):
                _offer(dropdown, options)
            self.film.max = len(times) - 1
            _offer(self.t_env, [(f"{t:,}", t) for t in times])
            for slider, most in ((self.row, n_out - browser.rows), (self.group, n_groups - browser.groups)):
                slider.max = max(0, most)
                slider.layout.display = None if most > 0 else "none"  # nothing to move where all is drawn
            for field, value in vars(now).items():
                getattr(self, field).value = value
        finally:
            self._following = False
        self.picture.value = browser.png()
        self._complain("")

    def mimebundle(self) -> dict[str, Any]:
        """What a notebook shows them by."""
        return dict(self.box._repr_mimebundle_())

    def _chosen(self, field: str, change: Mapping[str, Any]) -> None:
        """A control was moved, by the user and not by `follow`."""
        if self._following:
            return
        try:
            self.browser.select(**{field: change["new"]})
        except RunError as error:  # a damaged snapshot, a folder that is gone: an exception here nobody would see
            self._complain(str(error))

    def _complain(self, text: str) -> None:
        self.problem.value, self.problem.layout.display = text, None if text else "none"


def _offer(choice: Any, options: Sequence[Any]) -> None:
    """Set the options if they are others: a choice goes back to the first when they are set."""
    if list(choice.options) != list(options):
        choice.options = options
