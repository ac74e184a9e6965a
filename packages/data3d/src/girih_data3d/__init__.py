"""Medical volumes in zarr: read, prepare, and load training patches fast and safely."""

from girih_data3d.affine import boxes_to_ras, move_boxes, voxel_to_world, world_to_voxel
from girih_data3d.errors import CorruptCaseError, ManifestError, ScanError, StaleCaseError
from girih_data3d.instances import resample_instances
from girih_data3d.nifti import write_nifti
from girih_data3d.normalize import normalize
from girih_data3d.resample import resample
from girih_data3d.scan import read_labels, read_scan

__all__ = [
    "CorruptCaseError",
    "ManifestError",
    "ScanError",
    "StaleCaseError",
    "boxes_to_ras",
    "move_boxes",
    "normalize",
    "read_labels",
    "read_scan",
    "resample",
    "resample_instances",
    "voxel_to_world",
    "world_to_voxel",
    "write_nifti",
]
