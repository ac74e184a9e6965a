"""The formats that are known, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from girih_data3d.formats import (
    abdomenatlas,
    bids,
    ct_rate,
    cta_a,
    duke_breast,
    folder,
    kits21,
    lidc_idri,
    luna16,
    msd_pancreas,
    nndetection,
    nnunet,
    openmind,
    pn9,
    ribfrac,
)
from girih_data3d.formats.format import Format

_MODULES = (
    abdomenatlas,
    bids,
    ct_rate,
    cta_a,
    duke_breast,
    folder,
    kits21,
    lidc_idri,
    luna16,
    msd_pancreas,
    nndetection,
    nnunet,
    openmind,
    pn9,
    ribfrac,
)

FORMATS: Mapping[str, Format] = MappingProxyType(
    {known.name: known for known in sorted((module.FORMAT for module in _MODULES), key=lambda known: known.name)}
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
