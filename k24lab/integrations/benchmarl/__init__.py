"""K-2:4 inside BenchMARL: models for its experiments, and the callback that anneals and logs their masks.

`K24MlpConfig` and `K24GruConfig` take the place of BenchMARL's `MlpConfig` and `GruConfig`. Nothing of theirs is part
of this package.
"""

try:
    import benchmarl  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"k24lab.integrations.benchmarl needs BenchMARL ({error}): pip install 'k24lab[benchmarl]'"
    ) from error

from k24lab.integrations.benchmarl.callback import K24Callback
from k24lab.integrations.benchmarl.models import K24GruConfig, K24MlpConfig

__all__ = ["K24Callback", "K24GruConfig", "K24MlpConfig"]
