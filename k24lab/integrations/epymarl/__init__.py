"""K-2:4 inside a checkout of epymarl or pymarl2: their runner, buffer, mixers and logging, our agent and learner.

`python -m k24lab.integrations.epymarl PATH` makes `python src/main.py --config=k24_qmix ...` work in the checkout at
PATH. Nothing of theirs is part of this package: their modules are imported when their program runs.
"""

from k24lab.integrations.epymarl.registry import register

__all__ = ["register"]
