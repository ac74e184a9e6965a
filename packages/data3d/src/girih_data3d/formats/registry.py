"""The formats that are known, by name."""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from girih_data3d.formats.format import Format

_MODULES = (
    "abdomenatlas",
    "bids",
    "ct_rate",
    "cta_a",
    "duke_breast",
    "folder",
    "kits21",
    "lidc_idri",
    "luna16",
    "msd_pancreas",
    "nndetection",
    "nnunet",
    "openmind",
    "pn9",
    "ribfrac",
)
_KNOWN: tuple[Format, ...] = tuple(import_module(f"girih_data3d.formats.{name}").FORMAT for name in _MODULES)

FORMATS: Mapping[str, Format] = MappingProxyType(
    {known.name: known for known in sorted(_KNOWN, key=lambda known: known.name)}
)
"""Name -> format, in alphabetical order."""


def get_format(name: str) -> Format:
    """Return the format of a name.

    Raises:
        ValueError: no such format; the message lists those there are.
    """
    if name not in FORMATS:
        raise ValueError(f"no format {name!r}, known are {', '.join(FORMATS)}")
    return FORMATS[name]
