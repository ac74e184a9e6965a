"""LUNA16: points in world millimetres, whichever way a scan is stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.formats.luna16 import FORMAT, SUBSETS, read

HEADER = ["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"]
UIDS = tuple(f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{number}" for number in (1, 2, 3))
CENTRE_ZYX = (6, 8, 11)
"""Voxel of the nodule's centre in the canonical scan of 2.5 x 0.75 x 0.5 mm."""
DIAMETER = 4.5
BOX = tuple(np.float32([6.5 - 0.9, 8.5 - 3, 11.5 - 4.5, 6.5 + 0.9, 8.5 + 3, 11.5 + 4.5]).tolist())
"""0.9, 3 and 4.5 voxels to each side of the centre of the centre's voxel."""
VOXELS = (6, 5, 7, 7, 12, 16)
"""Around those whose centres are at most 2.25 mm away: none, 3 and 4 to each side of the centre's."""


def lps(scan: Any, voxel_zyx: tuple[int, ...]) -> list[float]:
    x, y, z = (scan.affine @ [*voxel_zyx[::-1], 1])[:3].tolist()
    return [-x, -y, z]


@pytest.fixture
def challenge(tmp_path: Path, scans: dict[str, Any], write_rows: Callable[..., Path]) -> Path:
    """Two of the ten subsets: a plain scan, a flipped one (TransformMatrix with -1), one without a nodule."""
    root = tmp_path / "luna"
    for uid, subset, name in zip(UIDS, ("subset0", "subset3", "subset3"), ("plain", "flipped", "empty"), strict=True):
        scans[name].write(root / subset / f"{uid}.mhd")
    scan = scans["plain"]
    nodule, finding = lps(scan, CENTRE_ZYX), lps(scan, (9, 3, 4))
    write_rows(root / "annotations.csv", [HEADER, *([uid, *nodule, DIAMETER] for uid in UIDS[:2])])
    write_rows(root / "annotations_excluded.csv", [HEADER, [UIDS[0], *finding, -1], [UIDS[1], *finding, 3.2]])
    return root


def test_the_fixture_is_what_the_challenge_has(challenge: Path) -> None:
    header = (challenge / f"subset3/{UIDS[1]}.mhd").read_text()
    assert "ElementDataFile = " + UIDS[1] + ".raw" in header
    matrix = next(line for line in header.splitlines() if line.startswith("TransformMatrix")).partition("=")[2]
    assert [float(value) for value in matrix.split()] == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    plain = (challenge / f"subset0/{UIDS[0]}.mhd").read_text()  # RAS is flipped against the LPS of MetaImage
    matrix = next(line for line in plain.splitlines() if line.startswith("TransformMatrix")).partition("=")[2]
    assert [float(value) for value in matrix.split()] == [-1, 0, 0, 0, -1, 0, 0, 0, 1]


def test_nodules_come_out_where_the_world_says_however_a_scan_is_stored(
    challenge: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    dataset = read(challenge)
    assert [(s.case_id, s.part, s.series_uid) for s in dataset.sources] == [
        (uid, part, uid) for uid, part in zip(UIDS, ("subset0", "subset3", "subset3"), strict=True)
    ]
    assert dataset.sources[2].objects == ()
    store = prepare(dataset)
    assert_planted(store, UIDS[0], scans["plain"], [(0, BOX)])
    assert_planted(store, UIDS[1], scans["flipped"], [(0, BOX)])
    assert_planted(store, UIDS[2], scans["empty"], [])
    painted = np.argwhere(store[UIDS[1]].read_instance_layers((0, 0, 0), (12, 16, 20))[0] == 1)
    assert (*painted.min(axis=0), *(painted.max(axis=0) + 1)) == VOXELS
    for uid, diameter in zip(UIDS, (10.0, 3.2), strict=False):  # -1: the diameter of the evaluation script
        truth = store[uid].truth
        assert truth is not None
        assert truth["ignore"] == [False, True]
        assert store[uid].objects.ignore.tolist() == [False, True]
        reach = truth["boxes_ras_mm"][1][3] - (-38)  # the high edge in x, from the centre
        assert abs(reach - diameter / 2) <= 0.5  # a voxel


def test_an_ellipsoid_is_painted_unless_none_is_wanted(challenge: Path, prepare: Callable[..., d3.Store]) -> None:
    store = prepare(read(challenge, excluded="background", paint="none"))
    case = store[UIDS[1]]
    size = DIAMETER / np.array([2.5, 0.75, 0.5])
    middle = np.array(CENTRE_ZYX) + 0.5
    np.testing.assert_allclose(case.boxes[0], [*(middle - size / 2), *(middle + size / 2)], atol=1e-4)
    assert case.truth is not None
    np.testing.assert_allclose(case.truth["diameters_mm"], [DIAMETER])
    assert {source.paint for source in read(challenge).sources} == {"ellipsoid"}


def test_excluded_findings_can_be_background_and_then_their_table_is_not_needed(challenge: Path) -> None:
    (challenge / "annotations_excluded.csv").unlink()
    with pytest.raises(d3.ManifestError, match=r"annotations_excluded.csv: no such file, .*excluded=background"):
        read(challenge)
    labels = read(challenge, excluded="background").sources[0].objects
    assert labels is not None
    assert [label.ignore for label in labels] == [False]


def test_tables_may_lie_with_the_evaluation_script(challenge: Path) -> None:
    wanted = read(challenge)
    folder = challenge / "evaluationScript/annotations"
    folder.mkdir(parents=True)
    for table in challenge.glob("*.csv"):
        table.rename(folder / table.name)
    assert read(challenge.parent) == wanted


def test_rows_of_absent_subsets_are_counted_and_others_refused(
    challenge: Path, scans: dict[str, Any], write_rows: Callable[..., Path]
) -> None:
    rows = [HEADER, [UIDS[0], 1, 2, 20, 3], ["9.9.9", 1, 2, 20, 3], ["8.8.8", 1, 2, 20, 3]]
    write_rows(challenge / "annotations.csv", rows)
    assert read(challenge).passed_over == ("annotations.csv: 2 rows of scans in the 8 absent subsets",)
    write_rows(challenge / "seriesuids.csv", [[uid] for uid in (*UIDS, "9.9.9")])
    with pytest.raises(
        d3.ManifestError, match=r"annotations.csv: row 4: seriesuid '8.8.8' is no scan in subset0, subset3"
    ):
        read(challenge)
    (challenge / "seriesuids.csv").unlink()
    for number, subset in enumerate(SUBSETS):
        if not (challenge / subset).exists():
            scans["empty"].write(challenge / subset / f"5.{number}.mhd")
    with pytest.raises(d3.ManifestError, match=r"annotations.csv: row 3: seriesuid '9.9.9' is no scan"):
        read(challenge)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([UIDS[0], "x", 2, 3, 4], "row 2: coordX is 'x', wanted a finite number"),
        ([UIDS[0], 1, 2, "inf", 4], "row 2: coordZ is 'inf', wanted a finite number"),
        ([UIDS[0], 1, 2, 3, -1], "row 2: diameter_mm is -1.0, wanted a positive length"),
        ([UIDS[0], 1, 2e9, 3, 4], "row 2: center_ras_mm is .*at most"),
        (["", 1, 2, 3, 4], "row 2: seriesuid is '', wanted a text"),
        ([UIDS[0], 1, 2, 3], "row 2: diameter_mm is '', wanted a finite number"),
        ([UIDS[0], 1, 2, 3, "1_0"], "row 2: diameter_mm is '1_0', wanted a finite number"),
        ([UIDS[0], 1, 2, 3, 4, "", 5], "row 2 has 7 cells, the header has 5"),
    ],
)
def test_bad_rows(challenge: Path, write_rows: Callable[..., Path], row: list[object], message: str) -> None:
    write_rows(challenge / "annotations.csv", [HEADER, row])
    with pytest.raises(d3.ManifestError, match=f"annotations.csv: {message}"):
        read(challenge)


def test_cells_that_are_empty_at_the_end_do_not_count(challenge: Path, write_rows: Callable[..., Path]) -> None:
    scan_row = [UIDS[0], 1, 2, 20, 3]
    write_rows(challenge / "annotations.csv", [HEADER, [*scan_row, "", ""]])
    (found, _) = read(challenge).sources[0].objects or ()
    assert found.diameter_mm == 3
    write_rows(challenge / "annotations.csv", [HEADER, scan_row, scan_row])
    with pytest.raises(
        d3.ManifestError, match=r"annotations.csv: row 3: the nodule at \[-1.0, -2.0, 20.0\] is there tw"
    ):
        read(challenge)


def test_half_unpacked_and_double_scans(challenge: Path, scans: dict[str, Any]) -> None:
    scans["empty"].write(challenge / f"subset0/{UIDS[1]}.mhd")
    with pytest.raises(d3.ManifestError, match="is there twice"):
        read(challenge)
    (challenge / f"subset0/{UIDS[1]}.raw").unlink()
    with pytest.raises(d3.ManifestError, match=rf"{UIDS[1]}.raw: no such file, the voxels of {UIDS[1]}.mhd"):
        read(challenge)
    for path in (challenge / "subset0").iterdir():
        path.unlink()
    with pytest.raises(d3.ManifestError, match=r"subset0: no .mhd file in it"):
        read(challenge)


def test_a_folder_that_is_another(tmp_path: Path) -> None:
    (tmp_path / "subset0.zip").write_bytes(b"")
    with pytest.raises(d3.ManifestError, match=r"looked for subset0 to subset9, .*unpack subset0.zip"):
        read(tmp_path)


def test_what_is_stated() -> None:
    assert FORMAT.counts is not None
    assert sum(FORMAT.counts.parts.values()) == sum(FORMAT.counts.official.values()) == FORMAT.counts.images == 888
