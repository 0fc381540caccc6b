"""What `k24lab export` does."""

import json
from pathlib import Path

from k24lab.analysis.export import marl_eval
from k24lab.analysis.find_runs import find_groups
from k24lab.analysis.load import load_metrics, load_summaries
from k24lab.errors import ConfigError
from k24lab.inference.freeze import freeze_run, save_team, storage_report
from k24lab.inference.onnx import export_onnx
from k24lab.lab.runs import atomic_write, find_folder


def export_results(groups: tuple[str, ...], output: Path) -> None:
    """Write the results of groups of runs in the layout of marl-eval."""

    runs = find_groups(groups)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as file:
        file.write((json.dumps(marl_eval(load_metrics(runs), load_summaries(runs))) + "\n").encode())


def export_team(what: tuple[str, ...], output: Path, format: str, dtype: str, agent: int | None) -> None:
    """Write the trained team of one run as safetensors or onnx."""
    if len(what) != 1:
        raise ConfigError(f"--format {format} takes the folder of one run, not {len(what)}")
    team = freeze_run(find_folder(what[0]))
    if format == "onnx":
        export_onnx(team, output, dtype, agent)
        lead = "" if agent is not None else f"{team.n_masks}, "
        print(f"inputs: obs [{lead}batch, {team.input_dim}], hidden [{lead}batch, {team.config.hidden_dim}]")
    elif agent is not None:
        raise ConfigError(f"agent = {agent} needs --format onnx: a safetensors file holds the whole team")
    else:
        save_team(team, output, dtype)
        print(storage_report(team, output.stat().st_size, dtype))
