"""Layouts of public datasets, read by names and tables alone."""

from girih_data3d.formats.comparison import Compared, compare_counts
from girih_data3d.formats.format import Counts, Format
from girih_data3d.formats.options import Option, options_of, parse_options
from girih_data3d.formats.outlines import fill_outline
from girih_data3d.formats.reading import read_format
from girih_data3d.formats.registry import FORMATS, get_format

__all__ = [
    "FORMATS",
    "Compared",
    "Counts",
    "Format",
    "Option",
    "compare_counts",
    "fill_outline",
    "get_format",
    "options_of",
    "parse_options",
    "read_format",
]
