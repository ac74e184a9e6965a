"""What came out: a progress plot of a run, overlay pictures of predictions, and one self-contained HTML page."""

from girih.report.montage import montage
from girih.report.page import Arm, write_report
from girih.report.plots import progress_png
from girih.report.reconstruction import reconstruction_png

__all__ = ["Arm", "montage", "progress_png", "reconstruction_png", "write_report"]
