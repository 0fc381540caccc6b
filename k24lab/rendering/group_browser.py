"""A list of groups of runs in a notebook: the masks of the chosen group, and an animation of any of its runs."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from k24lab.errors import ConfigError, RunError, unknown
from k24lab.lab.find_runs import find_runs, group_names
from k24lab.rendering.animation import replay
from k24lab.rendering.mask_browser import MaskBrowser, mask_browser


class GroupBrowser:
    """The groups of runs to choose from; of the chosen one the mask browser, and test episodes of any of its runs.

    Show it as the last line of a cell. In JupyterLab its controls work; where nobody can move them it is the figure of
    the masks. `select` chooses another group, and `replay` plays a run. A group without masks has no mask browser
    (`masks` is None), but its runs can be played.
    """

    masks: MaskBrowser | None

    def __init__(self, group: str, **options: Any):
        """Begin with a group, by its name; `options` are those of `mask_browser`."""
        self._options = options
        style = {"style": {"description_width": "5em"}}
        self.group = widgets.Dropdown(description="group", options=group_names(), value=None, **style)
        self.run = widgets.Dropdown(description="replay", layout={"width": "40em"}, **style)
        self.button = widgets.Button(description="play", icon="play")
        self.problem = widgets.Label()
        self.animation = widgets.Image(format="gif", layout={"display": "none"})
        self._masks = widgets.VBox()
        self._box = widgets.VBox(
            [self.group, self._masks, widgets.HBox([self.run, self.button]), self.problem, self.animation]
        )
        self.group.observe(self._show, "value")
        self.button.on_click(self._play)
        self.select(group)

    def select(self, group: str) -> "GroupBrowser":
        """Show another group; a RunError if there is none of that name."""
        if group not in self.group.options:
            raise RunError(unknown("group", group, self.group.options))
        self.group.value = group
        return self

    def replay(self, run: str | None = None, episodes: int = 1) -> bytes:
        """The first test episodes of a run of the group as a GIF, which is shown too: by its id, or the selected run.

        Raises:
            RunError: no such run, or what `k24lab replay` refuses.
            ConfigError: as `k24lab replay`.
        """
        ids = dict(self.run.options)
        if run is not None and run not in ids:
            raise RunError(unknown("run", run, ids))
        self.run.value = ids[run] if run is not None else self.run.value
        with tempfile.TemporaryDirectory() as folder:
            path, shown = replay(str(self.run.value), Path(folder) / "episodes.gif", episodes)
            self.animation.value = path.read_bytes()
        self.animation.layout.display, self.problem.value = "", shown
        return bytes(self.animation.value)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The controls, and the picture of the masks for whoever cannot show them."""
        picture = self.masks._repr_mimebundle_() if self.masks else {"text/plain": str(self.group.value)}
        return picture | dict(self._box._repr_mimebundle_())

    def _show(self, change: Mapping[str, Any]) -> None:
        """Another group is chosen."""
        runs = find_runs(change["new"], finished_only=False)
        self.run.options = [(run.id, run.path) for run in runs]
        self.animation.layout.display, self.problem.value = "none", ""
        try:
            self.masks = mask_browser(runs, **self._options)
            self._masks.children = [self.masks.box]
            self.run.value = self.masks.runs[self.masks.selection.run].path
        except RunError as error:  # of methods without masks
            self.masks, self._masks.children = None, []
            self.run.value, self.problem.value = runs[0].path, str(error)

    def _play(self, button: widgets.Button) -> None:
        """The button is pressed."""
        self.problem.value = "playing …"
        try:
            self.replay()
        except (RunError, ConfigError) as error:  # an exception here nobody would see
            self.problem.value = str(error)
