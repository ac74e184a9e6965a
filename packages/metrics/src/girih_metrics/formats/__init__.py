"""Files of other tools: one module each, with `read(predictions, truth)` and `write(loaded, predictions, truth)`."""

from girih_metrics.formats.loaded import Loaded
from girih_metrics.formats.registry import FORMATS, common_classes, read_format, write_format

__all__ = ["FORMATS", "Loaded", "common_classes", "read_format", "write_format"]
