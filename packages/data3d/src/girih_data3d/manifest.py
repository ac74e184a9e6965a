"""dataset.json: which files belong to which case. A folder without one is a set of unlabelled scans."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.checked_json import Checked, is_number, is_whole, read_json
from girih_data3d.errors import ManifestError
from girih_data3d.grid_checks import Frame
from girih_data3d.itk import modality_and_series
from girih_data3d.object_label import ObjectLabel
from girih_data3d.object_rules import Components
from girih_data3d.painting import Paint
from girih_data3d.scan import holds_dicom, is_scan, scan_name

SCHEMA = 1
LAYOUTS = "layouts of public datasets are read with --format NAME, `girih-data3d formats` lists them"
OBJECTS = {"instances", "instance_classes", "ignore", "components", "objects", "paint"}
OPTIONAL = OBJECTS | {"patient_id", "semantic", "frame", "series_uid", "part", "defaced", "rescale", "spacing_zyx_mm"}
"""Keys that a case may have."""
OBJECT_NUMBER = re.compile(r"[1-9][0-9]{0,9}")


def read_manifest(path: Path | str) -> Dataset:
    """Read a dataset: its dataset.json, a folder that holds one, a folder of scans, or a single scan.

    dataset.json is {"schema": 1, "name", "classes": [...], "modality"?, "frame"?, "cases": [{"case_id",
    "images": [...], "patient_id"?, "series_uid"?, "part"?, "frame"?, "rescale"?: [slope, intercept],
    "spacing_zyx_mm"?: [3], "semantic"?, "defaced"?: file, and of its objects one of
        "instances": file or [files], "instance_classes"?: {"1": 0}, "ignore"?: [...];
        "components": {"2": 0}, value in the "semantic" file -> class of the objects that its components are;
        "objects": [{"class": 0, "ignore"?: true, and one of "box_zyx": [6], "box_ras_mm": [6], "center_ras_mm": [3]
        with "diameter_mm"}], "paint"?: "ellipsoid" or "box"}]}.
    See `CaseSource`, `ObjectLabel` and `Components`. A case with "objects": [] or an empty label file holds no object;
    a case with none of these keys is unlabelled. Paths are relative to the file's folder. In a folder without
    dataset.json every scan file and every folder of a DICOM series is one unlabelled case, named as the file without
    extension; a link to a scan that is gone is one too, which cannot be read. Modality and series of a DICOM folder are
    its own where dataset.json says none.

    Raises:
        ManifestError: missing or broken JSON, an unknown or missing key, a value of another type or out of range, a
            repeated case id, a path that leaves the folder, a missing file, or no cases.
    """
    path = Path(path)
    if not path.exists():
        raise ManifestError(f"{path}: no such file or folder")
    if path.is_file() and is_scan(path):
        return _scans(path.parent, [path])
    if path.is_dir():
        if not (path / "dataset.json").is_file():
            return _scans(path, *_scans_in(path))
        path = path / "dataset.json"
    content = read_json(path)
    if isinstance(content, dict) and not {"schema", "cases"} & set(content):
        raise ManifestError(f"{path}: has neither 'schema' nor 'cases', so it is not girih's; {LAYOUTS}")
    if isinstance(content, dict) and "spec_hash" in content:
        raise ManifestError(f"{path}: of a prepared dataset, wanted the scans that it was made from")
    top = Checked(content, f"{path}", {"schema", "name", "classes", "cases"}, {"modality", "frame"})
    if top["schema"] != SCHEMA:
        raise ManifestError(f"{path}: schema is {top['schema']!r}, wanted {SCHEMA}")
    classes = top.texts("classes")
    if len(set(classes)) != len(classes):
        raise ManifestError(f"{path}: classes has a repeated name: {list(classes)}")
    if not isinstance(top["cases"], list) or not top["cases"]:
        raise top.wrong("cases", "a list of at least one case")
    common = {"modality": top.text("modality") if "modality" in top else None, "frame": _frame(top)}
    sources = tuple(
        _case(case, f"{path}: cases[{i}]", path.parent, classes, common) for i, case in enumerate(top["cases"])
    )
    return _dataset(path, top.text("name"), classes, sources)


def _scans_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the scans in a folder, and what else is in it."""
    if holds_dicom(folder):
        return [folder], []
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    scans = [p for p in entries if (holds_dicom(p) if p.is_dir() else is_scan(p))]
    if not scans:
        raise ManifestError(
            f"{folder}: no dataset.json, no scan file and no DICOM series in this folder (deeper ones are not "
            f"searched); {LAYOUTS}"
        )
    return scans, [p for p in entries if p not in set(scans)]


def _scans(folder: Path, scans: list[Path], others: Sequence[Path] = ()) -> Dataset:
    sources = []
    for scan in scans:
        modality, series_uid = _own_words(scan)
        try:
            sources.append(CaseSource(scan_name(scan), (scan,), modality=modality, series_uid=series_uid))
        except ValueError as error:
            raise ManifestError(f"{scan}: {error}") from error
    return _dataset(folder, folder.resolve().name, (), sources, tuple(p.name for p in others))


def _dataset(
    where: Path, name: str, classes: tuple[str, ...], sources: Iterable[CaseSource], others: tuple[str, ...] = ()
) -> Dataset:
    try:
        return Dataset(name, classes, tuple(sources), others)
    except ValueError as error:
        raise ManifestError(f"{where}: {error}") from error


def _own_words(scan: Path) -> tuple[str | None, str | None]:
    """Return modality and series of a scan if it is one of DICOM."""
    return modality_and_series(scan) if scan.is_dir() else (None, None)


def _case(content: Any, where: str, folder: Path, classes: tuple[str, ...], common: dict[str, Any]) -> CaseSource:
    case = Checked(content, where, {"case_id", "images"}, OPTIONAL)
    case_id = case.text("case_id")
    where = case.where = f"{where} ({case_id})"
    files = {key: _files(case, key, folder) for key in ("images", "instances", "semantic", "defaced") if key in case}
    texts = {key: case.text(key) if key in case else None for key in ("patient_id", "series_uid", "part")}
    ignore = case.get("ignore", [])
    if not isinstance(ignore, list) or not all(is_whole(i, 1) for i in ignore):
        raise case.wrong("ignore", "a list of object numbers")
    objects = case.get("objects")
    if objects is not None:
        if not isinstance(objects, list):
            raise case.wrong("objects", "a list")
        objects = tuple(
            ObjectLabel.from_json(label, f"{where}: objects[{i}]", classes) for i, label in enumerate(objects)
        )
    modality, series_uid = common["modality"], texts["series_uid"]
    if modality is None or series_uid is None:
        own_modality, own_series = _own_words(files["images"][0])
        modality, series_uid = modality or own_modality, series_uid or own_series
    try:
        return CaseSource(
            case_id=case_id,
            images=files["images"],
            instances=files.get("instances", ()),
            instance_classes=(
                _class_of(case, "instance_classes", "object", classes) if "instance_classes" in case else None
            ),
            ignore=tuple(ignore),
            objects=objects,
            semantic=files["semantic"][0] if "semantic" in files else None,
            patient_id=texts["patient_id"],
            modality=modality,
            frame=_frame(case) if "frame" in case else common["frame"],
            rule=_components(case, files.get("semantic"), classes),
            paint=_paint(case),
            defaced=files["defaced"][0] if "defaced" in files else None,
            rescale=_numbers(case, "rescale", 2),
            spacing_zyx_mm=_numbers(case, "spacing_zyx_mm", 3),
            series_uid=series_uid,
            part=texts["part"],
        )
    except ManifestError:
        raise
    except ValueError as error:
        raise ManifestError(f"{where}: {error}") from error


def _files(case: Checked, key: str, folder: Path) -> tuple[Path, ...]:
    """Return the files of a key: "images" is a list, "instances" a list or a name, the others one name."""
    one = key in ("semantic", "defaced") or (key == "instances" and isinstance(case[key], str))
    names = (case.text(key),) if one else case.texts(key)
    if not names:
        raise case.wrong(key, "at least one file")
    if len(set(names)) < len(names):
        raise case.wrong(key, "every file once")
    return tuple(_inside(folder, name, f"{case.where}: {key}") for name in names)


def _frame(record: Checked) -> Frame | None:
    frame: Frame | None = record.get("frame")
    if frame is not None and frame != "mean" and not is_whole(frame, 0):
        raise record.wrong("frame", "'mean' or the number of a frame, from 0")
    return frame


def _components(case: Checked, semantic: tuple[Path, ...] | None, classes: tuple[str, ...]) -> Components | None:
    if "components" not in case:
        return None
    if semantic is None:
        raise ManifestError(f"{case.where}: components are given, but no semantic file to find them in")
    class_of = _class_of(case, "components", "label", classes)
    if not class_of:
        raise case.wrong("components", 'at least one label, such as {"2": 0}')
    return Components(semantic[0], tuple((index, (value,)) for value, index in class_of.items()))


def _paint(case: Checked) -> Paint | None:
    if case.get("paint") not in (None, *get_args(Paint)):
        raise case.wrong("paint", " or ".join(map(repr, get_args(Paint))))
    return case.get("paint")


def _numbers(case: Checked, key: str, count: int) -> tuple[Any, ...] | None:
    given = case.get(key)
    if given is not None and not (isinstance(given, list) and len(given) == count and all(map(is_number, given))):
        raise case.wrong(key, f"a list of {count} numbers")
    return None if given is None else tuple(given)


def _class_of(case: Checked, key: str, kind: str, classes: tuple[str, ...]) -> dict[int, int]:
    """Return the class of every number that a key names."""
    content = case.get(key, {})
    if not isinstance(content, dict):
        raise case.wrong(key, 'an object such as {"1": 0}')
    where = f"{case.where}: {key}"
    for number, index in content.items():
        if not OBJECT_NUMBER.fullmatch(number):
            raise ManifestError(f"{where}: {kind} {number!r}, wanted a whole number above 0")
        if not is_whole(index, 0, len(classes) - 1):
            raise ManifestError(f"{where}: class {index!r} of {kind} {number}, wanted 0 to {len(classes) - 1}")
    return {int(number): index for number, index in content.items()}


def _inside(folder: Path, name: str, where: str) -> Path:
    """Return the file, which has to exist inside the folder (links are followed)."""
    path = folder / name
    try:
        found = path.resolve(strict=True)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ManifestError(f"{where}: {name!r}: no such file") from error
    if not found.is_relative_to(folder.resolve()):
        raise ManifestError(f"{where}: {name!r} is {found}, outside the dataset's folder {folder.resolve()}")
    return path
