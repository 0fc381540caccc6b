"""Every figure and table of groups of runs, drawn by the notebooks that their runs can fill; nothing is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from k24lab.analysis.aggregate import complete_returns
from k24lab.analysis.load import load_summaries
from k24lab.lab import notebooks
from k24lab.lab.find_runs import find_groups, find_runs


def draw_figures(groups: Sequence[str], jobs: int, variant: str | None, name: str) -> list[Path]:
    """Execute notebooks on each group and on all groups together, `jobs` at a time.

    All others are compared with `variant`, by default with k24, or else the first that has runs in all tasks. The
    folder `name` gets the figures that show all groups together.
    """
    comparable = complete_returns(load_summaries(find_groups(groups)), variant)
    if variant is None:
        variant = "k24" if "k24" in comparable else next(iter(comparable))
    tasks = [task for group in groups for task in _of_group(group)]
    together = {"groups": list(groups), "variant": variant, "figures": name}
    return notebooks.execute_side_by_side([*tasks, ("08_paper_figures", together, name)], jobs)


def _of_group(group: str) -> list[notebooks.Task]:
    """The notebooks that can draw something of a group's runs."""
    runs = find_runs(group)
    tasks: list[notebooks.Task] = [("05_ablations", {"runs": group}, group)]
    masked = [str(run.config["method"]) for run in runs if (run.path / "patterns").is_dir()]
    if masked:
        parameters: dict[str, Any] = {"runs": group, "method": "k24" if "k24" in masked else masked[0]}
        tasks += [(notebook, parameters, group) for notebook in ("03_mask_patterns", "04_agent_similarity")]
    if any(run.config.get("mask_per") == "type" for run in runs):
        tasks.append(("07_unit_types", {"runs": group}, group))
    return tasks
