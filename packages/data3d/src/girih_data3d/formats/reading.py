"""Read a folder in one of the known formats."""

from pathlib import Path
from typing import Any

from girih_data3d.case_source import Dataset
from girih_data3d.errors import ManifestError
from girih_data3d.formats.listing import ARCHIVES
from girih_data3d.formats.options import check_options
from girih_data3d.formats.registry import get_format


def read_format(name: str, folder: Path | str, /, **options: Any) -> Dataset:
    """Return the cases of a public dataset as it was unpacked; only names and tables are read, no voxels.

    Args:
        name: of the format, see `FORMATS`.
        folder: the dataset's, or the one above it.
        options: of the format's reader.

    Raises:
        ValueError: no such format or option, or a value that the option does not take.
        ManifestError: the folder does not hold this dataset, or something in it is missing or contradicts something
            else; the message names file and row.
    """
    known = get_format(name)
    check_options(known, options)
    folder = Path(folder)
    if folder.is_file():
        hint = "unpack it and give the folder" if folder.name.lower().endswith(ARCHIVES) else "wanted a folder"
        raise ManifestError(f"{folder}: a file; {hint}")
    return known.read(folder, **options)
