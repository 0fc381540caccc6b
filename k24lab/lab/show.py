"""A run at a glance, as text: `k24lab show RUN`."""

import json
from pathlib import Path
from typing import Any

from k24lab.lab import provenance
from k24lab.lab.config import NOT_HASHED, Config, build_config
from k24lab.lab.runs import read_config
from k24lab.lab.status import run_status

SHOWN = (
    "imported",
    *("started", "t_env", "k24lab", "commit", "changed", "lock", "python", "packages", "kernels"),
    *("system", "host", "cpu", "n_cpus", "gpu", "device", "n_threads", "seed"),
)


def describe_run(folder: Path) -> str:
    """What a run is, how far it is, its last metrics, and where it comes from.

    Raises:
        RunError: no run folder.
    """
    config = read_config(folder)
    text = [folder.name, f"  {state_line(folder)}", "", "settings (those of the method are left out)"]
    text += _lines(own_settings(config))
    summary = folder / "summary.json"
    if summary.exists():
        text += ["", "at the end", *_lines(json.loads(summary.read_text()))]
    for k, attempt in enumerate(provenance.read(folder)):
        text += ["", f"attempt {k + 1}", *_lines({key: attempt[key] for key in SHOWN if key in attempt})]
    return "\n".join(text)


def state_line(folder: Path) -> str:
    """Whether a run is finished, running, failed or waiting, and how far it is."""
    now = run_status(folder)
    far = f"{now.state}, {now.t_env} of {now.t_max} env steps"
    return far + (f": {now.error}" if now.error else "")


def own_settings(config: Config) -> dict[str, Any]:
    """The method, and every setting that is not its default."""
    usual = build_config({"method": config.method, "learner": config.learner})
    keys = [key for key in vars(config) if key not in NOT_HASHED and getattr(config, key) != getattr(usual, key)]
    return {key: getattr(config, key) for key in dict.fromkeys(["task", "method", "seed", "t_max", *keys])}


def _lines(values: dict[str, Any]) -> list[str]:
    width = max(map(len, values), default=0)
    return [f"  {key:{width}}  {as_text(value)}" for key, value in values.items()]


def as_text(value: Any) -> str:
    """A value of a configuration or a summary for a person."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {as_text(item)}" for key, item in value.items())
    return ", ".join(map(as_text, value)) or "none" if isinstance(value, list) else str(value)
