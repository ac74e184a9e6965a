"""Read all channels of a case as one scan."""

import numpy as np
import xarray as xr

from girih_data3d.case_source import CaseSource
from girih_data3d.errors import ScanError
from girih_data3d.scan import GRID_TOLERANCE, read_scan


def read_source(source: CaseSource) -> xr.DataArray:
    """Read a case's image files as one scan, one channel per file, of the form that `read_scan` gives.

    Raises:
        ScanError: a file cannot be read, or has another shape or affine (1e-3 mm) than the first.
    """
    first = _read(source, 0)
    if len(source.images) == 1:
        return first
    values = np.empty((len(source.images), *first.shape[1:]), np.float32)
    values[0], name = first.values[0], source.images[0]
    for channel, path in enumerate(source.images[1:], start=1):
        scan = _read(source, channel)
        if scan.shape != first.shape:
            raise ScanError(f"{path}: shape {scan.shape[1:]}, the first channel's is {first.shape[1:]} ({name})")
        if not np.allclose(scan.attrs["affine"], first.attrs["affine"], rtol=0, atol=GRID_TOLERANCE):
            found, wanted = scan.attrs["affine"].tolist(), first.attrs["affine"].tolist()
            raise ScanError(f"{path}: affine {found}, the first channel's is {wanted} ({name})")
        values[channel] = scan.values[0]
    coords = {axis: first.coords[axis] for axis in "zyx"}
    return xr.DataArray(values, dims=first.dims, coords=coords, name=first.name, attrs=first.attrs)


def _read(source: CaseSource, channel: int) -> xr.DataArray:
    return read_scan(
        source.images[channel],
        frame=source.frame,
        case_id=source.case_id,
        modality=source.modality,
        rescale=source.rescale,
        spacing_zyx_mm=source.spacing_zyx_mm,
    )
