"""Detection metrics for 3D medical imaging: AP, FROC, bootstrap intervals, rankings."""

from girih_metrics.ap import average_precision
from girih_metrics.bootstrap import bootstrap, percentile_interval, resample
from girih_metrics.boxes import pairwise_iou
from girih_metrics.files import read_cases, read_classes
from girih_metrics.froc import FPPI, froc, froc_curve
from girih_metrics.interfaces import Case
from girih_metrics.matches import Matches, merge
from girih_metrics.matching import match

__all__ = [
    "FPPI",
    "Case",
    "Matches",
    "average_precision",
    "bootstrap",
    "froc",
    "froc_curve",
    "match",
    "merge",
    "pairwise_iou",
    "percentile_interval",
    "read_cases",
    "read_classes",
    "resample",
]
