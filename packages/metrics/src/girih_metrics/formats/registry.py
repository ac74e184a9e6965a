"""The formats by name."""

from collections.abc import Callable
from pathlib import Path

from girih_metrics.formats import coco, girih, luna16, monai, nndetection, table
from girih_metrics.formats.loaded import Loaded, Unit

Reader = Callable[[Path, Path], Loaded]
Writer = Callable[[Loaded, Path, Path], None]

FORMATS: dict[str, tuple[Reader, Writer]] = {
    "girih": (girih.read, girih.write),
    "csv": (table.read, table.write),
    "nndetection": (nndetection.read, nndetection.write),
    "monai": (monai.read, monai.write),
    "coco": (coco.read, coco.write),
    "luna16": (luna16.read, luna16.write),
}
"""{name: (read, write)}; see the module of that name ("csv": table)."""


def read_format(name: str, predictions: Path | str, truth: Path | str, *, unit: Unit = "voxel") -> Loaded:
    """Read predictions and truth of the format `name`; `unit` chooses between the two that girih files hold.

    Raises:
        ValueError: an unknown format, or files that are not of it.
    """
    if name == "girih":
        return girih.read(Path(predictions), Path(truth), unit=unit)
    return _of(name)[0](Path(predictions), Path(truth))


def write_format(name: str, loaded: Loaded, predictions: Path | str, truth: Path | str) -> None:
    """Write predictions and truth in the format `name`.

    Raises:
        ValueError: an unknown format, or boxes in voxels for one that knows world millimetres only, or the reverse.
    """
    wanted = {"monai": "mm", "luna16": "mm", "nndetection": "voxel"}.get(name, loaded.unit)
    if loaded.unit != wanted:
        raise ValueError(f"the boxes are in {loaded.unit}; {name} wants {wanted}")
    _of(name)[1](loaded, Path(predictions), Path(truth))


def _of(name: str) -> tuple[Reader, Writer]:
    if name not in FORMATS:
        raise ValueError(f"format is {name!r}; wanted one of {sorted(FORMATS)}")
    return FORMATS[name]
