"""Looking through the masks of runs in a notebook: which run, layer, agent and time; a plain figure without widgets."""

import base64
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import pandas as pd

from k24lab.analysis.load import has_patterns, mask_names, read_patterns, snapshot_paths
from k24lab.analysis.style import SCREEN_DPI, TEXT_WIDTH, paper_style, run_title, screen_png
from k24lab.core.patterns import GROUP_SIZE
from k24lab.errors import RunError, unknown
from k24lab.lab.find_runs import Run, find_runs, variants
from k24lab.methods import METHODS
from k24lab.rendering.draw_mask import Part, change_table, describe, draw_mask, mask_view

_read = functools.lru_cache(maxsize=8)(read_patterns)  # a snapshot that is there does not change


class Selection(NamedTuple):
    """What is shown; `row` and `group` are the first that are drawn of a layer too large to be drawn whole."""

    run: str  # as `MaskBrowser.runs` names it
    layer: str = "fc2"  # square, and masked in every variant of the method
    agent: str = "0"  # or unit type, as `load.mask_names` has it
    t_env: int = -1  # env steps; the snapshot nearest to it, -1: the last
    row: int = 0
    group: int = 0


class Choices(NamedTuple):
    """What one run has to choose from, by now."""

    layers: dict[str, tuple[int, int]]  # masked layers: output units and groups of four input units
    agents: list[str]  # whose masks there are: agents by their index, or names of unit types
    times: list[int]  # env steps of the snapshots


class MaskBrowser:
    """The masks of some runs, one view at a time: show it as the last line of a cell.

    In JupyterLab its controls work; where nobody can move them (papermill, a page on the web) it is the figure of its
    selection, which `select` changes. `runs` have the names by which they are chosen; `rows` output units and `groups`
    of four input units are drawn at a time.
    """

    def __init__(self, runs: Mapping[str, Run], rows: int = 32, groups: int = 16):
        self.runs, self.rows, self.groups = dict(runs), rows, groups
        style = {"style": {"description_width": "5em"}}
        self.controls: dict[str, Any] = {
            "run": widgets.Dropdown(description="run", **style),
            "layer": widgets.Dropdown(description="layer", **style),
            "agent": widgets.Dropdown(**style),
            "t_env": widgets.SelectionSlider(options=[0], description="env steps", **style),
            "row": widgets.IntSlider(description="first row", **style),
            "group": widgets.IntSlider(description="first group", **style),
        }
        for field, control in self.controls.items():
            control.observe(functools.partial(self._moved, field), "value")
        width = f"{TEXT_WIDTH * SCREEN_DPI:.0f}px"  # its own: stretched over the cell it blurs
        self.picture, self.problem = widgets.Image(format="png", layout={"width": width}), widgets.Label()
        self.box = widgets.VBox([*self.controls.values(), self.problem, self.picture])
        self._following = False  # the selection, with the controls: they were not moved by the user then
        self._show(Selection(next(iter(self.runs))))

    def select(self, **changes: Any) -> "MaskBrowser":
        """Show another run, layer, agent, t_env (the nearest snapshot), row or group; the rest stays where it can."""
        for key in changes.keys() - set(Selection._fields):
            raise RunError(unknown("field", key, Selection._fields))
        wanted = self.selection._replace(**changes)
        if wanted.run not in self.runs:
            raise RunError(unknown("run", wanted.run, self.runs))
        choices = _choices(self.runs[wanted.run])
        for key, allowed in (("layer", list(choices.layers)), ("agent", choices.agents)):
            if key in changes and changes[key] not in allowed:
                raise RunError(unknown(key, changes[key], allowed))
        self._show(wanted)
        return self

    @property
    def choices(self) -> Choices:
        """What the selected run has to choose from."""
        return _choices(self.runs[self.selection.run])

    def table(self) -> pd.DataFrame:
        """What the figure shows, as a table: a line per weight of the part that is drawn."""
        return change_table(self.view, self._part(self.selection)).assign(**self.selection._asdict())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Controls and picture in one: whoever shows the cell takes the best that works there."""
        picture = base64.b64encode(self.picture.value).decode()
        return dict(self.box._repr_mimebundle_()) | {"text/plain": str(self.selection), "image/png": picture}

    def _part(self, s: Selection) -> Part:
        return np.s_[s.row : s.row + self.rows, GROUP_SIZE * s.group : GROUP_SIZE * (s.group + self.groups)]

    def _show(self, wanted: Selection) -> None:
        """Draw the nearest selection that exists, and let the controls show it; a damaged snapshot changes nothing."""
        run = self.runs[wanted.run]
        choices, paths = _choices(run), snapshot_paths(run)
        of = "unit type" if run.config.get("mask_per") == "type" else "agent"
        layers, agents, times = choices
        layer = wanted.layer if wanted.layer in layers else next(iter(layers))
        n_out, n_groups = layers[layer]
        s = Selection(
            run=wanted.run,
            layer=layer,
            agent=wanted.agent if wanted.agent in agents else agents[0],
            t_env=times[-1] if wanted.t_env < 0 else min(times, key=lambda t: abs(t - wanted.t_env)),
            row=max(0, min(wanted.row, n_out - self.rows)),
            group=max(0, min(wanted.group, n_groups - self.groups)),
        )
        k, agent = times.index(s.t_env), agents.index(s.agent)
        before = _read(paths[times[k - 1]])[s.layer] if k else None
        view = mask_view(_read(paths[s.t_env])[s.layer], before, agent)
        title = f"{run_title(run)} · {s.layer} · {of} {s.agent} · {s.t_env:,} env steps"
        with paper_style():
            figure = draw_mask(view, self._part(s), title, describe(view, agent, agents, of), of)
            self.picture.value = screen_png(figure)
        self.selection, self.view, self.figure = s, view, figure
        self._update_controls(choices, of)

    def _update_controls(self, choices: Choices, of: str) -> None:
        """Show the selection in the controls, and what else could be chosen."""
        s, times = self.selection, [(f"{t:,}", t) for t in choices.times]
        options: dict[str, list[Any]] = {
            "run": list(self.runs),
            "layer": list(choices.layers),
            "agent": choices.agents,
            "t_env": times,
        }
        n_out, n_groups = choices.layers[s.layer]
        self._following = True
        try:
            self.controls["agent"].description = of
            for field, offered in options.items():
                if self.controls[field].options != tuple(offered):
                    self.controls[field].options = offered
            for field, most in (("row", n_out - self.rows), ("group", n_groups - self.groups)):
                self.controls[field].max = max(0, most)
            for field, value in s._asdict().items():
                self.controls[field].value = value
        finally:
            self._following = False
        self.problem.value = ""

    def _moved(self, field: str, change: Mapping[str, Any]) -> None:
        """A control has another value."""
        if not self._following:
            try:
                self.select(**{field: change["new"]})
            except RunError as error:  # a damaged snapshot, a folder that is gone: an exception here nobody would see
                self.problem.value = str(error)


def mask_browser(
    source: str | Path | Run | Sequence[Run], *, rows: int = 32, groups: int = 16, **start: Any
) -> MaskBrowser:
    """A browser of the masks of a group of runs (by name or folder), of some runs or of one; of unfinished ones too.

    Runs of methods without masks are left out. `start` is what is shown first, e.g. `layer="rnn_hidden", t_env=0`.
    """
    if isinstance(source, Run):
        source = [source]
    runs = find_runs(source, finished_only=False) if isinstance(source, str | Path) else source
    masked = [run for run in runs if has_patterns(run)]
    if not masked:
        methods = ", ".join(sorted({str(run.config.get("method")) for run in runs})) or "none"
        have = ", ".join(name for name, method in METHODS.items() if method.masks == "each" and method.pattern == "2:4")
        raise RunError(f"none of {len(runs)} runs has masks to show (methods: {methods}); methods that have: {have}")
    named = [(f"{v}, seed {run.config.get('seed')}", run) for run, v in zip(masked, variants(masked), strict=True)]
    names = [name for name, _ in named]
    several = {name for name in names if names.count(name) > 1}  # of other tasks
    labelled = {f"{name} ({run.id})" if name in several else name: run for name, run in named}
    return MaskBrowser(labelled, rows, groups).select(**start)


def _choices(run: Run) -> Choices:
    paths = snapshot_paths(run)
    last = _read(list(paths.values())[-1])
    n_masks = len(next(iter(last.values())).index)
    try:
        agents = mask_names(run)
    except RunError:  # it has not ended, and so does not say
        agents = []
    agents = agents if len(agents) == n_masks else [str(agent) for agent in range(n_masks)]
    return Choices({name: layer.index.shape[1:] for name, layer in last.items()}, agents, list(paths))
