"""Medical volumes in zarr: read, prepare, and load training patches fast and safely."""

from girih_data3d.affine import (
    boxes_to_ras,
    move_boxes,
    rescale_affine,
    shift_affine,
    voxel_to_world,
    world_to_voxel,
)
from girih_data3d.case import Case
from girih_data3d.case_preparation import prepare_case
from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.conversion import Report, prepare_many
from girih_data3d.dataset import PatchDataset
from girih_data3d.errors import CorruptCaseError, ManifestError, ScanError, StaleCaseError
from girih_data3d.fingerprint import Fingerprint, fingerprint
from girih_data3d.fingerprint_file import measure_or_read, read_fingerprint, write_fingerprint
from girih_data3d.formats import Counts, Format, compare_counts, get_format, read_format
from girih_data3d.geometry import Geometry
from girih_data3d.index import CaseIndex, update_index
from girih_data3d.instances import resample_instances
from girih_data3d.leakage import Leak, LeakError, LeakReport, check_no_leak, find_leaks, find_leaks_within
from girih_data3d.manifest import read_manifest
from girih_data3d.nifti import write_nifti
from girih_data3d.normalisation import normalize
from girih_data3d.object_label import ObjectLabel
from girih_data3d.object_rules import Components, FoundObjects, ObjectRule, Votes
from girih_data3d.objects import Objects
from girih_data3d.paper_splits import paper_split
from girih_data3d.passed_over import passed_over
from girih_data3d.plan import Plan, plan_from_json, read_plan, refuse_beside_plan, write_plan
from girih_data3d.planning.dataset_plan import DatasetPlan, plan_dataset
from girih_data3d.planning.objects_per_patch import objects_per_patch, queries_for
from girih_data3d.planning.planner import make_plan
from girih_data3d.prepare import Prepared, prepare_scan
from girih_data3d.provenance import origin_of
from girih_data3d.resampling import resample
from girih_data3d.sampler import PatchSampler
from girih_data3d.scan import read_labels, read_scan
from girih_data3d.source import read_source
from girih_data3d.spec import PrepareSpec
from girih_data3d.split_rules import holdout_split, kfold_split, official_split, subset
from girih_data3d.splits import Fold, Split, read_split
from girih_data3d.store import Store
from girih_data3d.verify import Verification, verify

__all__ = [
    "Case",
    "CaseIndex",
    "CaseSource",
    "Components",
    "CorruptCaseError",
    "Counts",
    "Dataset",
    "DatasetPlan",
    "Fingerprint",
    "Fold",
    "Format",
    "FoundObjects",
    "Geometry",
    "Leak",
    "LeakError",
    "LeakReport",
    "ManifestError",
    "ObjectLabel",
    "ObjectRule",
    "Objects",
    "PatchDataset",
    "PatchSampler",
    "Plan",
    "PrepareSpec",
    "Prepared",
    "Report",
    "ScanError",
    "Split",
    "StaleCaseError",
    "Store",
    "Verification",
    "Votes",
    "boxes_to_ras",
    "check_no_leak",
    "compare_counts",
    "find_leaks",
    "find_leaks_within",
    "fingerprint",
    "get_format",
    "holdout_split",
    "kfold_split",
    "make_plan",
    "measure_or_read",
    "move_boxes",
    "normalize",
    "objects_per_patch",
    "official_split",
    "origin_of",
    "paper_split",
    "passed_over",
    "plan_dataset",
    "plan_from_json",
    "prepare_case",
    "prepare_many",
    "prepare_scan",
    "queries_for",
    "read_fingerprint",
    "read_format",
    "read_labels",
    "read_manifest",
    "read_plan",
    "read_scan",
    "read_source",
    "read_split",
    "refuse_beside_plan",
    "resample",
    "resample_instances",
    "rescale_affine",
    "shift_affine",
    "subset",
    "update_index",
    "verify",
    "voxel_to_world",
    "world_to_voxel",
    "write_fingerprint",
    "write_nifti",
    "write_plan",
]
