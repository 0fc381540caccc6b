"""The tasks of `mpe` by their names."""

import inspect

from k24lab.envs.base import TaskBuilder
from k24lab.envs.mpe import MpeEnv
from k24lab.envs.mpe_hunt import SimpleTag, SimpleWorldComm
from k24lab.envs.mpe_places import SimpleFormation, SimpleLine, SimpleSpread
from k24lab.envs.mpe_treasure import CollectTreasure
from k24lab.envs.mpe_words import SimpleReference, SimpleSpeakerListener

MPE_TASKS: dict[str, type[MpeEnv]] = {
    "collect_treasure": CollectTreasure,
    "simple_formation": SimpleFormation,
    "simple_line": SimpleLine,
    "simple_reference": SimpleReference,
    "simple_speaker_listener": SimpleSpeakerListener,
    "simple_spread": SimpleSpread,
    "simple_tag": SimpleTag,
    "simple_world_comm": SimpleWorldComm,
}


def mpe_builder(name: str) -> TaskBuilder:
    """The builder of one of MPE_TASKS, with its options."""
    return TaskBuilder(MPE_TASKS[name], inspect.signature(MPE_TASKS[name]).parameters)
