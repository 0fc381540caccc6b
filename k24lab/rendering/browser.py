"""Looking through the masks of runs in a notebook: which run, layer, agent and time; a plain figure without widgets."""

import base64
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from k24lab.analysis.find_runs import Run, find_runs, variants
from k24lab.analysis.load import Patterns, kind, mask_names, read_patterns, snapshot_paths
from k24lab.analysis.style import paper_style, screen_png
from k24lab.errors import RunError, unknown
from k24lab.methods import METHODS
from k24lab.rendering.mask_view import MaskView, Window, change_table, draw_view, mask_view, numbers

FIRST_LAYER = "fc2"  # shown first where there is one: square, and masked in every variant of the method


@dataclass(frozen=True)
class Selection:
    """What is shown; `row` and `group` are the first that are drawn of a layer too large to be drawn whole."""

    run: str  # as `MaskBrowser.runs` names it
    layer: str = FIRST_LAYER
    agent: str = "0"  # or unit type, as `results.mask_names` has it
    t_env: int = -1  # env steps; the snapshot nearest to it, -1: the last
    row: int = 0
    group: int = 0


class MaskBrowser:
    """The masks of some runs, one view at a time: show it as the last line of a cell.

    In JupyterLab it has controls; where widgets are missing, or nobody can move them (papermill, a page on the web), it
    is the figure of its selection, which `select` changes.

    Args:
        runs: by the names they are chosen by, each with mask snapshots.
        rows: output units drawn at a time.
        groups: groups of four input units drawn at a time.
    """

    def __init__(self, runs: Mapping[str, Run], rows: int = 32, groups: int = 16):
        if rows < 1 or groups < 1:
            raise RunError(f"rows = {rows} and groups = {groups} must be at least 1")
        self.runs, self.rows, self.groups = dict(runs), rows, groups
        self.selection = self._settled(Selection(next(iter(self.runs))))
        self.figure = self._draw()
        self.controls = _controls(self)

    def select(self, **changes: Any) -> "MaskBrowser":
        """Show another run, layer, agent, t_env (the nearest snapshot), row or group; the rest stays where it can.

        Raises:
            RunError: no such field, run, layer or agent (the nearest name is given), or a damaged snapshot.
        """
        for key in changes.keys() - vars(self.selection).keys():
            raise RunError(unknown("field", key, vars(self.selection)))
        wanted = dataclasses.replace(self.selection, **changes)
        if wanted.run not in self.runs:
            raise RunError(unknown("run", wanted.run, self.runs))
        for key, there in (("layer", self.layers(wanted.run)), ("agent", self.agents(wanted.run))):
            if key in changes and getattr(wanted, key) not in there:
                raise RunError(unknown(key, getattr(wanted, key), there))
        before, self.selection = self.selection, self._settled(wanted)
        if self.selection != before:
            try:
                self.figure = self._draw()
            except RunError:
                self.selection = before
                raise
        if self.controls:
            self.controls.follow()
        return self

    @property
    def view(self) -> MaskView:
        """The numbers that are shown."""
        s, times = self.selection, self.times()
        last = times.index(s.t_env) - 1
        before = self._patterns(times[last])[s.layer] if last >= 0 else None
        return mask_view(self._patterns(s.t_env)[s.layer], before, self.agents().index(s.agent))

    @property
    def window(self) -> Window:
        """The part of the layer that is drawn."""
        return Window(self.selection.row, self.selection.group, self.rows, self.groups)

    def table(self) -> pd.DataFrame:
        """What the figure shows, as a table: a line per weight of the part that is drawn."""
        return change_table(self.view, self.window).assign(**dataclasses.asdict(self.selection))

    def times(self, run: str | None = None) -> list[int]:
        """Env steps of the snapshots there are by now, of the selected run or the one named."""
        return list(snapshot_paths(self.runs[run or self.selection.run]))

    def layers(self, run: str | None = None) -> list[str]:
        """Names of the masked layers."""
        return list(self._last(run))

    def agents(self, run: str | None = None) -> list[str]:
        """Whose masks there are: agents by their index, or names of unit types."""
        return _names(self.runs[run or self.selection.run], len(next(iter(self._last(run).values())).index))

    def shape(self) -> tuple[int, int]:
        """Output units and groups of the selected layer."""
        _, n_out, n_groups = self._last()[self.selection.layer].index.shape
        return n_out, n_groups

    def png(self) -> bytes:
        """The figure as a picture."""
        with paper_style():
            return screen_png(self.figure)

    def _last(self, run: str | None = None) -> dict[str, Patterns]:
        return _read(list(snapshot_paths(self.runs[run or self.selection.run]).values())[-1])

    def _patterns(self, t_env: int) -> dict[str, Patterns]:
        return _read(snapshot_paths(self.runs[self.selection.run])[t_env])

    def _settled(self, wanted: Selection) -> Selection:
        """The nearest selection that exists."""
        layers, agents, times = self.layers(wanted.run), self.agents(wanted.run), self.times(wanted.run)
        layer = wanted.layer if wanted.layer in layers else layers[0]
        _, n_out, n_groups = self._last(wanted.run)[layer].index.shape
        return Selection(
            run=wanted.run,
            layer=layer,
            agent=wanted.agent if wanted.agent in agents else agents[0],
            t_env=times[-1] if wanted.t_env < 0 else min(times, key=lambda t: abs(t - wanted.t_env)),
            row=max(0, min(wanted.row, n_out - self.rows)),
            group=max(0, min(wanted.group, n_groups - self.groups)),
        )

    def _draw(self) -> Figure:
        s, view, of = self.selection, self.view, kind(self.runs[self.selection.run])
        with paper_style():
            title = f"{s.run} · {s.layer} · {of} {s.agent} · {s.t_env:,} env steps"
            note = numbers(view, self.agents().index(s.agent), self.agents(), of)
            return draw_view(view, self.window, title, note, of)

    def __repr__(self) -> str:
        s = self.selection
        return f"MaskBrowser({len(self.runs)} runs; {s.run}, {s.layer}, agent {s.agent}, {s.t_env} env steps)"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Controls and picture in one: whoever shows the cell takes the best that works there."""
        bundle = {"text/plain": repr(self), "image/png": base64.b64encode(self.png()).decode()}
        return (self.controls.mimebundle() if self.controls else {}) | bundle


def mask_browser(
    source: str | Path | Run | Sequence[Run], *, rows: int = 32, groups: int = 16, **start: Any
) -> MaskBrowser:
    """A browser of the masks of a group of runs (by name or folder), of some runs or of one; of unfinished ones too.

    Runs of methods without masks are left out. `start` is what is shown first, e.g. `layer="rnn_hidden", t_env=0`.

    Raises:
        RunError: no runs, none with masks, or a `start` that does not exist.
    """
    if isinstance(source, Run):
        runs = [source]
    else:
        runs = find_runs(source, finished_only=False) if isinstance(source, str | Path) else list(source)
    masked = [run for run in runs if any((run.path / "patterns").glob("[0-9]*.npz"))]
    if not masked:
        methods = ", ".join(sorted({str(run.config.get("method")) for run in runs})) or "none"
        have = ", ".join(name for name, method in METHODS.items() if method.masks == "each" and method.pattern == "2:4")
        raise RunError(f"none of {len(runs)} runs has masks to show (methods: {methods}); methods that have: {have}")
    return MaskBrowser(_named(masked), rows, groups).select(**start)


def _named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by variant and seed; with their task where there are several, and their id where that is not enough."""
    several = len({run.config.get("task") for run in runs}) > 1
    names = [
        (f"{run.config.get('task')}, " if several else "") + f"{variant}, seed {run.config.get('seed')}"
        for run, variant in zip(runs, variants(runs), strict=True)
    ]
    return {
        name if names.count(name) == 1 else f"{name} ({run.id})": run for name, run in zip(names, runs, strict=True)
    }


def _names(run: Run, n_masks: int) -> list[str]:
    """Names of a run's masks; by index while it has not ended and so does not say."""
    try:
        names = mask_names(run)
    except RunError:
        names = []
    return names if len(names) == n_masks else list(map(str, range(n_masks)))


def _read(path: Path) -> dict[str, Patterns]:
    try:
        return _read_once(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error


@functools.lru_cache(maxsize=8)
def _read_once(path: Path, changed: int) -> dict[str, Patterns]:
    return read_patterns(path)


def _controls(browser: MaskBrowser) -> Any:
    """Controls, if ipywidgets is there."""
    try:
        from k24lab.rendering.browser_controls import Controls
    except ImportError:
        return None
    controls = Controls(browser)
    controls.follow()
    return controls
