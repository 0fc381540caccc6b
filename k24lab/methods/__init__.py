"""The methods that can be trained, one file each. To add one, write a file like the others and list it here."""

from k24lab.errors import ConfigError, unknown
from k24lab.methods.base import Method
from k24lab.methods.fups import Fups
from k24lab.methods.fups_id import FupsId
from k24lab.methods.gains import GainsMethod
from k24lab.methods.gains24 import Gains24
from k24lab.methods.hyper import Hyper
from k24lab.methods.k24 import K24
from k24lab.methods.k24_alpha import K24Alpha
from k24lab.methods.k24_gains import K24Gains
from k24lab.methods.k24_literal import K24Literal
from k24lab.methods.kaleidoscope import Kaleidoscope
from k24lab.methods.kaleidoscope_half import KaleidoscopeHalf
from k24lab.methods.kaleidoscope_id import KaleidoscopeId
from k24lab.methods.magnitude24 import Magnitude24
from k24lab.methods.multih import MultiHead
from k24lab.methods.nops import Nops
from k24lab.methods.random24 import Random24

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        K24(),
        K24Alpha(),
        K24Literal(),
        Random24(),
        Fups(),
        FupsId(),
        Nops(),
        Magnitude24(),
        Kaleidoscope(),
        MultiHead(),
        KaleidoscopeId(),
        KaleidoscopeHalf(),
        Hyper(),
        GainsMethod(),
        Gains24(),
        K24Gains(),
    )
}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in METHODS:
        raise ConfigError(unknown("method", name, METHODS))
    return METHODS[name]
