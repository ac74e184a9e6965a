import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from girih.samples import SampleSet
from girih.samples.lidc import MARGIN_MM, consensus_nodules, extract_nodules, findings, signed_distance
from girih.samples.sample_set import sample_set

SLICE_MM, PIXEL_MM = 2.0, 0.5


def square(x: int, y: int, half: int) -> str:
    """An outline around the (2 half - 1)^2 pixels with the middle (x, y)."""
    return f"{x - half},{y - half}\n{x + half},{y - half}\n{x + half},{y + half}\n{x - half},{y + half}"


def write_database(path: Path, readers: list[list[tuple[float, bool, str]]]) -> Path:
    """Write a database of one scan; each reader's annotation is a list of (z in mm, inclusion, outline)."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE scans (id INTEGER, patient_id TEXT, pixel_spacing REAL);"
            "CREATE TABLE zvals (id INTEGER, scan_id INTEGER, val REAL);"
            "CREATE TABLE annotations (id INTEGER, scan_id INTEGER, texture INTEGER, malignancy INTEGER,"
            " margin INTEGER, subtlety INTEGER);"
            "CREATE TABLE contours (id INTEGER, annotation_id INTEGER, inclusion BOOLEAN, image_z_position REAL,"
            " coords TEXT);"
        )
        connection.execute("INSERT INTO scans VALUES (7, 'P1', ?)", (PIXEL_MM,))
        connection.executemany("INSERT INTO zvals VALUES (?, 7, ?)", [(k, -100.0 + SLICE_MM * k) for k in range(60)])
        for reader, contours in enumerate(readers, start=1):
            connection.execute("INSERT INTO annotations VALUES (?, 7, ?, 3, 4, 5)", (reader, 1 + reader % 5))
            for z_mm, inclusion, outline in contours:
                row = (reader, inclusion, z_mm, outline)
                connection.execute("INSERT INTO contours VALUES (0, ?, ?, ?, ?)", row)
        connection.commit()
    return path


def cube(x: int, half: int, slices: int = 4) -> list[tuple[float, bool, str]]:
    return [(-90.0 + SLICE_MM * k, True, square(x, 50, half)) for k in range(slices)]


def test_half_of_the_readers_decide(tmp_path: Path) -> None:
    # three readers draw 15 x 15 pixels, the fourth 27 x 27: half of four need two, so the small square stays
    database = write_database(tmp_path / "a.sqlite", [cube(50, 8), cube(50, 8), cube(50, 8), cube(50, 14)])
    (nodule,) = extract_nodules(database)
    volume_mm3 = 15 * 15 * 4 * SLICE_MM * PIXEL_MM**2
    assert nodule.diameter_mm == pytest.approx((6 / np.pi * volume_mm3) ** (1 / 3))
    assert nodule.annotations == (1, 2, 3, 4)
    assert nodule.patient_id == "P1"
    assert (nodule.texture, nodule.malignancy, nodule.margin, nodule.subtlety) == (3.5, 3, 4, 5)
    assert np.count_nonzero(nodule.signed_distance_mm < 0) == pytest.approx(volume_mm3, rel=0.15)  # flat faces tie


def test_a_hole_is_cut_whatever_the_order_of_the_contours(tmp_path: Path) -> None:
    hole = [(z_mm, False, square(50, 50, 4)) for z_mm, _, _ in cube(50, 8)]
    sizes = []
    for name, contours in (("first", hole + cube(50, 8)), ("last", cube(50, 8) + hole)):
        (nodule,) = extract_nodules(write_database(tmp_path / name, [contours] * 3))
        sizes.append(nodule.diameter_mm)
    volume_mm3 = (15 * 15 - 7 * 7) * 4 * SLICE_MM * PIXEL_MM**2
    assert sizes == pytest.approx([(6 / np.pi * volume_mm3) ** (1 / 3)] * 2)


def test_readers_join_through_overlap_and_not_by_touching(tmp_path: Path) -> None:
    # boxes along x in pixels: 42-58, 54-70, 66-82 form a chain; 82-98 only touches the last one
    database = write_database(tmp_path / "a.sqlite", [cube(50, 8), cube(62, 8), cube(74, 8), cube(90, 8)])
    assert [finding.annotations for finding in findings(database)] == [(1, 2, 3), (4,)]


def test_two_readers_are_no_consensus_and_sizes_are_bounded(tmp_path: Path) -> None:
    assert extract_nodules(write_database(tmp_path / "two", [cube(50, 8)] * 2)) == []
    assert extract_nodules(write_database(tmp_path / "small", [cube(50, 3, slices=1)] * 3)) == []
    assert extract_nodules(write_database(tmp_path / "large", [cube(50, 40, slices=10)] * 3)) == []


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.7)])
def test_signed_distance_of_a_ball(spacing: tuple[float, float, float]) -> None:
    radius = 7.0
    index = np.indices((15, 41, 41)) - np.array([7, 20, 20])[:, None, None, None]
    away = np.sqrt(((index * np.array(spacing)[:, None, None, None]) ** 2).sum(axis=0))
    distance = signed_distance(away < radius, spacing).astype(float)
    assert all(size % 2 == 1 for size in distance.shape)
    middle = np.array(distance.shape) // 2
    exact = np.linalg.norm(np.indices(distance.shape) - middle[:, None, None, None], axis=0) - radius
    near = np.abs(exact) < MARGIN_MM - 1
    assert np.abs(distance - exact)[near].max() < max(spacing)
    assert np.abs(distance - exact)[near].mean() < 0.5
    assert np.count_nonzero(distance < 0) == pytest.approx(np.count_nonzero(away < radius) * np.prod(spacing), rel=0.01)


def test_the_table_is_kept_and_made_again_if_damaged(tmp_path: Path) -> None:
    samples = sample_set(tmp_path)
    samples.lidc_database.parent.mkdir(parents=True)
    write_database(samples.lidc_database, [cube(50, 8)] * 3)
    (first,) = consensus_nodules(samples)
    samples.lidc_database.unlink()
    (second,) = consensus_nodules(samples)
    np.testing.assert_array_equal(first.signed_distance_mm, second.signed_distance_mm)
    assert (first.annotations, first.texture, first.scan) == (second.annotations, second.texture, second.scan)
    (table,) = (tmp_path / "derived").iterdir()
    table.write_bytes(table.read_bytes()[:1000])
    with pytest.raises(sqlite3.OperationalError):  # it goes back to the database
        consensus_nodules(samples)


@pytest.mark.samples
def test_numbers_of_the_annotation_database(samples: SampleSet) -> None:
    found = findings(samples.lidc_database)
    readers = np.bincount([len(finding.annotations) for finding in found])
    assert (readers[1], readers[2], readers[3], readers[4], readers[5:].sum()) == (769, 484, 477, 890, 22)
    consensus = [finding for finding in found if len(finding.annotations) >= 3]
    assert len(consensus) == 1389
    assert len({finding.scan for finding in consensus}) == 703


@pytest.mark.samples
def test_nodules_of_4_to_20_mm(samples: SampleSet) -> None:
    nodules = consensus_nodules(samples)
    # With the outline's own pixels counted as nodule there would be 1303 in 664 scans, with half of them 1299 in 668.
    assert len(nodules) == 1284
    assert len({nodule.scan for nodule in nodules}) == 665
    diameters = np.array([nodule.diameter_mm for nodule in nodules])
    assert np.median(diameters) == pytest.approx(6.750, abs=1e-3)
    assert all(1 <= nodule.texture <= 5 and 1 <= nodule.margin <= 5 for nodule in nodules)
    parts = [ndimage.label(nodule.signed_distance_mm < 0, np.ones((3, 3, 3)))[1] for nodule in nodules[::20]]
    assert set(parts) == {1}
