"""The files of a case: whole or not there, never of other detections than the JSON file, and each refusal by name."""

import errno
import itertools
import json
import os
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import jaxtyping
import jsonschema
import nibabel
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from girih.atomic import remove_stale
from girih.outputs import FORMATS, missing_formats, read_schema, write_case
from girih.report.files import read_boxes

CASES = runpy.run_path(str(Path(__file__).with_name("output_cases.py")))
detections, strict_json, TWO = CASES["detections"], CASES["strict_json"], CASES["TWO"]


def test_the_files_of_a_case(tmp_path: Path) -> None:
    write_case(tmp_path / "out", TWO)
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in tmp_path.rglob("*.*") if path.is_file()) == [
        "case.json",
        "nifti/case.nii.gz",
        "slicer/case.mrk.json",
    ]
    assert strict_json(tmp_path / "out/case.json") == TWO
    assert missing_formats(tmp_path / "out", "case", FORMATS) == ()
    boxes = read_boxes(tmp_path / "out/case.json", "detections")  # what the report reads
    assert_array_equal(boxes.boxes, TWO["boxes"])


def test_only_the_formats_asked_for_and_the_missing_ones_later(tmp_path: Path) -> None:
    write_case(tmp_path, TWO, formats=())
    assert [path.name for path in tmp_path.iterdir()] == ["case.json"]
    assert missing_formats(tmp_path, "case", FORMATS) == ("slicer", "nifti")
    write_case(tmp_path, strict_json(tmp_path / "case.json"), formats=missing_formats(tmp_path, "case", ["nifti"]))
    assert missing_formats(tmp_path, "case", FORMATS) == ("slicer",)
    assert strict_json(tmp_path / "case.json") == TWO


def test_min_score_thins_the_views_but_not_the_json(tmp_path: Path) -> None:
    made = detections(TWO["boxes"], [0.5, 0.25], labels=[1, 0])
    write_case(tmp_path, made, min_score=0.5)  # 0.5 itself stays
    assert len(strict_json(tmp_path / "case.json")["boxes"]) == 2
    assert [roi["name"] for roi in strict_json(tmp_path / "slicer/case.mrk.json")["markups"]] == ["cyst 0.500"]
    assert np.unique(np.asarray(nibabel.load(tmp_path / "nifti/case.nii.gz").dataobj)).tolist() == [0, 1]


@pytest.mark.parametrize("min_score", [-0.1, 1.1, float("nan")])
def test_a_min_score_that_no_score_can_have_is_refused(tmp_path: Path, min_score: float) -> None:
    with pytest.raises(ValueError, match=f"min_score is {min_score}, wanted 0 to 1"):
        write_case(tmp_path, TWO, min_score=min_score)
    with pytest.raises(ValueError, match="min_score is"):
        missing_formats(tmp_path, "case", FORMATS, min_score=min_score)
    assert not list(tmp_path.iterdir())


def test_a_case_without_boxes_has_no_regions_and_lacks_none(tmp_path: Path) -> None:
    write_case(tmp_path, detections([], []))
    jsonschema.validate(strict_json(tmp_path / "case.json"), read_schema("detections"))
    assert not (tmp_path / "slicer").exists()  # Slicer does not open a file without regions
    assert missing_formats(tmp_path, "case", FORMATS) == ()
    assert not np.asarray(nibabel.load(tmp_path / "nifti/case.nii.gz").dataobj).any()


def test_boxes_below_min_score_give_no_regions(tmp_path: Path) -> None:
    made = detections(TWO["boxes"], [0.5, 0.25])
    write_case(tmp_path, made, formats=["slicer"])
    write_case(tmp_path, made, formats=["slicer"], min_score=0.75)
    assert not (tmp_path / "slicer/case.mrk.json").exists()
    assert missing_formats(tmp_path, "case", ["slicer"], min_score=0.75) == ()
    assert missing_formats(tmp_path, "case", ["slicer"], min_score=0.5) == ("slicer",)


# ---- other detections of the same case


def test_views_of_other_detections_do_not_stay(tmp_path: Path) -> None:
    write_case(tmp_path, TWO)
    other = detections(TWO["boxes"], [0.8, 0.1])
    write_case(tmp_path, other, formats=["csv"])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["case.json"]
    assert strict_json(tmp_path / "case.json") == other
    assert missing_formats(tmp_path, "case", FORMATS) == ("slicer", "nifti")


def test_a_case_whose_views_are_of_other_detections_is_not_done(tmp_path: Path, monkeypatch) -> None:
    """What lay there goes before the first view of the new detections is written, the JSON file first of all."""
    write_case(tmp_path, TWO)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_case(tmp_path, detections(TWO["boxes"], [0.8, 0.1]), formats=["nifti"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_views_that_nothing_vouches_for_do_not_stay(tmp_path: Path) -> None:
    write_case(tmp_path, TWO)
    (tmp_path / "case.json").unlink()  # as after a kill before it was written
    write_case(tmp_path, TWO, formats=["slicer"])
    assert missing_formats(tmp_path, "case", FORMATS) == ("nifti",)


def test_a_view_that_is_added_leaves_the_others(tmp_path: Path) -> None:
    write_case(tmp_path, TWO, formats=["slicer"])
    before = (tmp_path / "slicer/case.mrk.json").stat().st_mtime_ns
    write_case(tmp_path, strict_json(tmp_path / "case.json"), formats=["nifti"])
    assert missing_formats(tmp_path, "case", FORMATS) == ()
    assert (tmp_path / "slicer/case.mrk.json").stat().st_mtime_ns == before


# ---- what is refused


def test_unknown_formats_are_refused_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse them first
    with pytest.raises(ValueError, match=r"unknown: \['dicom'\]; wanted some of \['csv', 'slicer', 'nifti'\]"):
        write_case(tmp_path, TWO, formats=["csv", "dicom"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "girih-detections/2"}, "schema is 'girih-detections/2', wanted 'girih-detections/1'"),
        ({"case_id": "../up"}, "case_id is '../up', wanted text that can name a file"),
        ({"case_id": ".hidden"}, "can name a file"),
        ({"case_id": "a" * 247}, "a', wanted text that can name a file, of at most 246 bytes"),
        ({"case_id": "\u00e4" * 124}, "at most 246 bytes"),
        ({"case_id": "a\ud800"}, r"case_id is 'a\\ud800', wanted text"),
        ({"classes": ["a", "\udfff"]}, r"classes is \['a', '\\udfff'\], wanted whole characters"),
        ({"space": "prepared"}, "space is 'prepared', wanted 'source'"),
        ({"scores": None}, "scores is None, wanted a list"),
        ({"classes": "nodule"}, "classes is 'nodule', wanted a list of names"),
        ({"labels": [0, 2]}, "labels has 2, wanted whole numbers from 0 to 1"),
        ({"labels": [0, 0.5]}, "labels has 0.5"),
        ({"labels": [0]}, r"labels has shape \(1,\)"),
        ({"scores": [0.5, float("nan")]}, "scores row 1 is nan"),
        ({"scores": [0.5, 1.5]}, r"scores row 1 is 1\.5, wanted 0 to 1"),
        ({"scores": [-0.5, 0.5]}, r"scores row 0 is -0\.5, wanted 0 to 1"),
        ({"scores": [True, 0.5]}, "scores has a bool, wanted finite numbers"),
        ({"labels": [0, True]}, "labels has a bool"),
        ({"boxes": [[0, 0, 0, 1, 1, True], [0, 0, 0, 1, 1, 1]]}, "boxes has a bool"),
        ({"boxes": [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]}, "boxes is ragged"),
        ({"boxes": [[0, 0, 0, 1, 1, 1], [3, 0, 0, 1, 1, 1]]}, r"boxes row 1 is \[3.0"),
        ({"boxes_ras_mm": [[0, 0, 0, 1, 1, 1]]}, r"boxes_ras_mm has shape \(1, 6\)"),
        ({"boxes_ras_mm": [[0, 0, 0, 1, 1, float("inf")]] * 2}, "boxes_ras_mm row 0"),
        ({"shape_zyx": [20, 24]}, r"shape_zyx has shape \(2,\)"),
        ({"shape_zyx": [20, 24, 0]}, "shape_zyx has 0"),
        ({"affine": np.zeros((4, 4)).tolist()}, "affine is .* wanted one that can be inverted"),
        ({"affine": [[0.1, 0.2, 0.3, 0], [0.4, 0.5, 0.6, 0], [0.7, 0.8, 0.9, 0], [0, 0, 0, 1]]}, "can be inverted"),
        ({"affine": None}, "affine has shape"),
    ],
)
def test_wrong_detections_are_refused_by_name(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^case '.*': .*{message}"):
        write_case(tmp_path, TWO | change)
    with pytest.raises(ValueError, match=f"{next(iter(change))} is missing"):
        write_case(tmp_path, {name: value for name, value in TWO.items() if name not in change})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [float("nan"), np.float32(1), np.int64(1), np.arange(3), {1, 2}, b"", {(1, 2): 3}])
def test_what_is_not_json_ready_is_refused_before_anything_is_written(tmp_path: Path, more) -> None:
    with pytest.raises(ValueError, match=r"^case 'case': not JSON-ready: "):
        write_case(tmp_path, TWO | {"model": more})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["boxes", "affine", "labels"])
def test_numpy_is_not_json_ready(tmp_path: Path, name: str) -> None:
    for value in (np.array(TWO[name]), list(np.array(TWO[name]))):
        with pytest.raises(ValueError, match=r"^case 'case': not JSON-ready: "):
            write_case(tmp_path, TWO | {name: value})
    assert not list(tmp_path.iterdir())


def test_the_longest_case_id(tmp_path: Path) -> None:
    write_case(tmp_path, TWO | {"case_id": "\u00e4" * 123})
    assert missing_formats(tmp_path, "\u00e4" * 123, FORMATS) == ()


# ---- a full disk, a kill


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch, fails: int) -> None:
    """The file that fails is not there, those before it are whole, and the JSON, which says "done", is last."""
    places, synced = ("slicer/case.mrk.json", "nifti/case.nii.gz", "case.json"), itertools.count()

    def full(handle: int) -> None:
        if next(synced) == fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"case 'case': .*{places[fails]} cannot be written: No space left") as caught:
        write_case(tmp_path, TWO)
    assert caught.value.errno == errno.ENOSPC
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted(places[:fails])
    write_case(tmp_path, TWO)
    assert missing_formats(tmp_path, "case", FORMATS) == ()


def test_a_write_that_the_kernel_refuses(tmp_path: Path) -> None:
    """As above, but real: files of at most 200 bytes, so that the write itself fails, inside gzip and csv too."""
    (tmp_path / "done").mkdir()
    (tmp_path / "done/case.json").write_text(json.dumps(TWO))
    script = """
        import json, resource, sys
        from pathlib import Path
        from girih.outputs import write_case, write_table
        folder = Path(sys.argv[1])
        case = json.loads((folder / "done/case.json").read_text())
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        for formats in (["slicer"], ["nifti"], []):
            try:
                write_case(folder / "out", case, formats=formats)
            except OSError as error:
                print(error)
        try:
            write_table(folder / "done")
        except OSError as error:
            print(error)
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    places = [f"out/{name}" for name in ("slicer/case.mrk.json", "nifti/case.nii.gz", "case.json")]
    start = f"[Errno {errno.EFBIG}] "
    assert done.stdout.splitlines() == [
        *(f"{start}case 'case': {tmp_path / place} cannot be written: File too large" for place in places),
        f"{start}{tmp_path / 'done/boxes.csv'} cannot be written: File too large",
    ]
    assert not done.stderr  # nothing fails again when the open file is dropped
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "done/case.json"]


def test_what_a_kill_leaves_of_a_nifti_is_tidied_up(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: None)  # as if there were no time for it

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot be written"):
        write_case(tmp_path, TWO, formats=["nifti"])
    monkeypatch.undo()
    (left,) = (tmp_path / "nifti").iterdir()
    os.utime(left, (0, 0))
    remove_stale(tmp_path / "nifti")
    assert not left.exists()
