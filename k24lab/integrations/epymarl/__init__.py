"""K-2:4 inside a checkout of epymarl or pymarl2: their runner, buffer, mixers and logging, our agent and learner.

`python -m k24lab.integrations.epymarl PATH` makes `python src/main.py --config=k24_qmix ...` work in the checkout at
PATH. Nothing of theirs is part of this package: their modules are imported when their program runs.
"""

import importlib
from typing import Any

from k24lab.errors import ConfigError


def register() -> None:
    """Add the K-2:4 agents, controller and learners to the registries of the checkout that runs.

    The line that the installer adds to `learners/__init__.py` calls this; a second call changes nothing.
    """
    # Here, so that the installer needs no torch.
    from k24lab.integrations.epymarl.controller import K24MAC, k24_agent
    from k24lab.integrations.epymarl.learner import EpymarlNQLearner, EpymarlQLearner

    _add("modules.agents", {"k24": k24_agent, "k24_type": k24_agent})
    _add("controllers", {"k24_mac": K24MAC})
    _add("learners", {"k24_learner": EpymarlQLearner, "k24_nq_learner": EpymarlNQLearner})


def _add(module: str, entries: dict[str, Any]) -> None:
    """Add entries to the REGISTRY of one of the checkout's modules."""
    try:
        registry: dict[str, Any] = importlib.import_module(module).REGISTRY
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"register() is for the src folder of epymarl or pymarl2, from which {error.name!r} can be imported; here "
            "it cannot"
        ) from error
    taken = [name for name, entry in entries.items() if registry.get(name, entry) is not entry]
    if taken:
        raise ConfigError(f"{module}.REGISTRY has another {', '.join(map(repr, taken))} already")
    registry.update(entries)
