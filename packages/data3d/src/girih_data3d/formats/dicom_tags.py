"""Single tags of DICOM files, read without their voxels."""

from pathlib import Path
from typing import Any

from girih_data3d.errors import ManifestError

MODALITY, SERIES_DESCRIPTION = "0008|0060", "0008|103e"
SOP_UID, SERIES_UID = "0008|0018", "0020|000e"
INSTANCE_NUMBER, IMAGE_POSITION, IMAGE_ORIENTATION = "0020|0013", "0020|0032", "0020|0037"


def read_tags(path: Path, *tags: str) -> dict[str, str]:
    """Return the texts of some tags ("group|element", hexadecimal), "" for those that the file does not have.

    Raises:
        ManifestError: SimpleITK is not installed, or the file is no DICOM file with an image.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise ManifestError(f"{path}: DICOM needs SimpleITK: pip install 'girih-data3d[formats]'") from error
    reader: Any = SimpleITK.ImageFileReader()  # type: ignore[no-untyped-call]
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ManifestError(f"{path}: not a readable DICOM file with an image") from error
    return {tag: reader.GetMetaData(tag).strip(" \0") if reader.HasMetaDataKey(tag) else "" for tag in tags}
