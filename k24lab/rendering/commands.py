"""Commands that look at what a run has learnt."""

from pathlib import Path
from typing import Annotated

import tyro

from k24lab.errors import ConfigError


def report(what: Annotated[str, tyro.conf.Positional], output: Path | None = None) -> None:
    """Write a run or a group of runs as one HTML page: curves, masks, similarity, tables, where they come from.

    Example: k24lab report rolenav-k24-s0-1a2b3c4d
    Example: k24lab report demo --output demo.html

    Args:
        what: run folder or name, or group under runs/.
        output: the page; by default output/report_<name>.html. One that is there is replaced.
    """
    from k24lab.rendering.report import write_report

    print(write_report(what, output))


def replay(
    run: Annotated[str | None, tyro.conf.Positional] = None,
    team: str | None = None,
    output: Path | None = None,
    episodes: int = 3,
    fps: int = 10,
) -> None:
    """Animate test episodes of a trained team: the environment, and beside it who is who, what each does, the return.

    Example: k24lab replay rolenav-k24-s0-1a2b3c4d
    Example: k24lab replay rolenav-k24-s0-1a2b3c4d --episodes 1 --output team.mp4
    Example: k24lab replay --team rolenav8

    Args:
        run: run folder, or its name alone where only one group has it; an unfinished run plays as its last checkpoint.
        team: instead of a run, a trained team that comes with the package (rolenav8, vmas_navigation), or the file of
            one that `k24lab export --format safetensors` wrote.
        output: .gif or .mp4; by default output/replay_<run or team>.gif. One that is there is replaced.
        episodes: how many, the first ones that the run was tested on.
        fps: env steps per second, 1 to 50.
    """
    from k24lab.rendering import animation

    if run is not None and team is None:
        path, shown = animation.replay(run, output, episodes, fps, progress=True)
    elif team is not None and run is None:
        path, shown = animation.replay_team(team, output, episodes, fps, progress=True)
    else:
        raise ConfigError("name either a run or, with --team, a trained team")
    print(shown)
    print(path)
