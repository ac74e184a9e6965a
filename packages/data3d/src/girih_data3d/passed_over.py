"""What people are told of files that reading a dataset passed over."""

from girih_data3d.case_source import Dataset

SHOWN = 10
"""Names that are written out."""


def passed_over(dataset: Dataset) -> str | None:
    """Return a line with the first names in `dataset.passed_over` and the number of the others; None without any."""
    if not dataset.passed_over:
        return None
    names, more = ", ".join(dataset.passed_over[:SHOWN]), len(dataset.passed_over) - SHOWN
    return f"passed over: {names}{f' and {more} more' if more > 0 else ''}"
