"""What `girih predict` leaves on disk: the boxes as JSON, and views of them for spreadsheets, 3D Slicer and viewers."""

from girih.outputs.case_boxes import read_schema
from girih.outputs.cases import FORMATS, Format, missing_formats, write_case
from girih.outputs.table import write_table

__all__ = ["FORMATS", "Format", "missing_formats", "read_schema", "write_case", "write_table"]
