"""Layouts of public datasets, read by names and tables alone."""

from girih_data3d.formats.format import Counts, Format
from girih_data3d.formats.registry import FORMATS, get_format

__all__ = ["FORMATS", "Counts", "Format", "get_format"]
