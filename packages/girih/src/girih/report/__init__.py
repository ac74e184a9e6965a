"""What came out: a progress plot of a run, pictures of predictions, and self-contained HTML pages."""

from girih.report.looking import look
from girih.report.page import Arm, write_report
from girih.report.plots import progress_png
from girih.report.reconstruction import reconstruction_png

__all__ = ["Arm", "look", "progress_png", "reconstruction_png", "write_report"]
