"""What is said of a scan in place of its header counts wherever the scan is read from its file."""

from pathlib import Path

import numpy as np

import girih_data3d
from girih.report.volumes import _raw
from girih.scans import _hash


def test_what_replaces_the_header_counts(tmp_path: Path) -> None:
    image = tmp_path / "a.nii"
    girih_data3d.write_nifti(np.full((3, 4, 5), 7, np.float32), image, affine=np.eye(4))
    plain = girih_data3d.CaseSource("a", (image, image))
    other = girih_data3d.CaseSource("a", (image, image), rescale=(2, -1000), spacing_zyx_mm=(3.0, 1.0, 1.0))
    halves = [
        girih_data3d.CaseSource("a", (image, image), rescale=(2, -1000)),
        girih_data3d.CaseSource("a", (image, image), spacing_zyx_mm=(3.0, 1.0, 1.0)),
    ]
    assert len({_hash(source) for source in (plain, other, *halves)}) == 4
    volume = _raw(other, None)
    assert volume.spacing_zyx_mm == (3, 1, 1)
    assert volume.channels == 2
    assert np.unique(volume.read((0, 0, 0), (3, 4, 5))).tolist() == [-986]
