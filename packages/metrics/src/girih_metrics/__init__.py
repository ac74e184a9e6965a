"""Detection metrics for 3D medical imaging: AP, FROC, bootstrap intervals, rankings."""

from girih_metrics.ap import average_precision
from girih_metrics.bootstrap import bootstrap, leave_one_out, resample
from girih_metrics.boxes import pairwise_iou
from girih_metrics.case_level import case_level, case_scores
from girih_metrics.compare import check_same_cases, compare, holm
from girih_metrics.convert import (
    from_coco,
    from_monai,
    from_nndetection,
    from_world_lps,
    lps_to_ras,
    to_coco,
    to_monai,
    to_nndetection,
    to_world_lps,
)
from girih_metrics.files import read_cases, read_classes
from girih_metrics.formats import FORMATS, Loaded, read_format, write_format
from girih_metrics.froc import FPPI, froc, froc_curve
from girih_metrics.interfaces import Case
from girih_metrics.intervals import bca_interval, percentile_interval
from girih_metrics.matches import Matches, merge
from girih_metrics.matching import match
from girih_metrics.nndetection import nndetection_compat
from girih_metrics.operating import operating_point, score_at_fppi
from girih_metrics.preset import Preset
from girih_metrics.protocols import PRESETS, evaluate, evaluate_matches, preset
from girih_metrics.ranking import critical_difference, mean_rank, rank, ranking, score_methods
from girih_metrics.stratify import by_size
from girih_metrics.tables import rank_table, save
from girih_metrics.thresholds import iou_range

__all__ = [
    "FORMATS",
    "FPPI",
    "PRESETS",
    "Case",
    "Loaded",
    "Matches",
    "Preset",
    "average_precision",
    "bca_interval",
    "bootstrap",
    "by_size",
    "case_level",
    "case_scores",
    "check_same_cases",
    "compare",
    "critical_difference",
    "evaluate",
    "evaluate_matches",
    "froc",
    "froc_curve",
    "from_coco",
    "from_monai",
    "from_nndetection",
    "from_world_lps",
    "holm",
    "iou_range",
    "leave_one_out",
    "lps_to_ras",
    "match",
    "mean_rank",
    "merge",
    "nndetection_compat",
    "operating_point",
    "pairwise_iou",
    "percentile_interval",
    "preset",
    "rank",
    "rank_table",
    "ranking",
    "read_cases",
    "read_classes",
    "read_format",
    "resample",
    "save",
    "score_at_fppi",
    "score_methods",
    "to_coco",
    "to_monai",
    "to_nndetection",
    "to_world_lps",
    "write_format",
]
