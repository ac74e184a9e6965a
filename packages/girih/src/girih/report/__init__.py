"""What a run looks like: a progress plot, overlay pictures, and one self-contained HTML page."""

from girih.report.plots import progress_png

__all__ = ["progress_png"]
