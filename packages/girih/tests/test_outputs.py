"""What a case leaves on disk: whole files, of the published schema, which independent readers put where the box is."""

import errno
import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jaxtyping
import jsonschema
import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import girih_data3d
from girih.outputs import FORMATS, missing_formats, read_schema, write_case
from girih.outputs.case_boxes import case_boxes
from girih.outputs.instances import instance_volume
from girih.outputs.slicer import markups
from girih.report.files import read_boxes
from girih_detectors.inference import restore

SHAPE = (20, 24, 28)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# The parts of Slicer's own schema (1.0.3) that its reader of boxes relies on.
MARKUPS_SCHEMA = {
    "type": "object",
    "required": ["@schema", "markups"],
    "properties": {
        "@schema": {"type": "string", "pattern": r"markups-schema-v1\.[0-9]+\.[0-9]+\.json#*$"},
        "markups": {
            "type": "array",
            "items": {
                "required": ["type", "name", "roiType", "coordinateSystem", "center", "orientation", "size"],
                "properties": {
                    "type": {"const": "ROI"},
                    "name": {"type": "string"},
                    "roiType": {"const": "Box"},
                    "coordinateSystem": {"const": "LPS"},
                    "coordinateUnits": {"const": "mm"},
                    "locked": {"type": "boolean"},
                    "center": {"$ref": "#/$defs/numbers", "minItems": 3, "maxItems": 3},
                    "size": {"$ref": "#/$defs/numbers", "minItems": 3, "maxItems": 3},
                    "orientation": {"$ref": "#/$defs/numbers", "minItems": 9, "maxItems": 9},
                    "controlPoints": {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": 1,
                        "items": {
                            "required": ["position"],
                            "properties": {
                                "position": {"$ref": "#/$defs/numbers", "minItems": 3, "maxItems": 3},
                                "positionStatus": {"const": "defined"},
                            },
                        },
                    },
                    "display": {
                        "properties": {
                            "color": {"$ref": "#/$defs/colour"},
                            "selectedColor": {"$ref": "#/$defs/colour"},
                            "opacity": {"type": "number", "minimum": 0, "maximum": 1},
                        }
                    },
                },
            },
        },
    },
    "$defs": {
        "numbers": {"type": "array", "items": {"type": "number"}},
        "colour": {
            "type": "array",
            "items": {"type": "number", "minimum": 0, "maximum": 1},
            "minItems": 3,
            "maxItems": 3,
        },
    },
}


def rotation(degrees_xyz: tuple[float, float, float]) -> np.ndarray:
    turned = np.eye(3)
    for axis, degrees in enumerate(degrees_xyz):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        one = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        one[a, a], one[a, b], one[b, a], one[b, b] = c, -s, s, c
        turned = one @ turned
    return turned


def oblique(degrees=(20.0, -35.0, 50.0), spacing_xyz=(0.7, 1.1, 2.5), origin=(-30.0, 40.0, 5.0), turn=None):
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) @ (np.eye(3) if turn is None else turn) * np.array(spacing_xyz)
    affine[:3, 3] = origin
    return affine


def detections(boxes, scores, *, labels=None, affine=None, case_id="case", classes=("nodule", "cyst"), **more) -> dict:
    """Made as `girih predict` makes them: by `restore`, here from a volume that is the source itself."""
    affine = oblique() if affine is None else affine
    prepared = {"source_affine": affine, "affine": affine, "source_shape_zyx": SHAPE}
    found = {
        "boxes": np.array(boxes, np.float32).reshape(-1, 6),
        "scores": np.array(scores, np.float32),
        "labels": np.zeros(len(scores), np.int64) if labels is None else np.array(labels, np.int64),
    }
    return restore(found, prepared, case_id=case_id, classes=classes) | more


TWO = detections([[2, 3, 4, 8, 9, 11], [1.5, 10.25, 20, 5, 12, 30.5]], [0.9, 0.25], labels=[1, 0])


def strict_json(path: Path):
    def refuse(word: str) -> None:
        raise ValueError(f"{path}: {word}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# ---- the files of a case


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
    write_case(tmp_path, TWO, min_score=0.5)
    assert len(strict_json(tmp_path / "case.json")["boxes"]) == 2
    assert [roi["name"] for roi in strict_json(tmp_path / "slicer/case.mrk.json")["markups"]] == ["cyst 0.900"]
    assert np.unique(np.asarray(nibabel.load(tmp_path / "nifti/case.nii.gz").dataobj)).tolist() == [0, 1]


def test_a_case_without_boxes(tmp_path: Path) -> None:
    nothing = detections([], [])
    write_case(tmp_path, nothing)
    jsonschema.validate(strict_json(tmp_path / "case.json"), read_schema("detections"))
    assert strict_json(tmp_path / "slicer/case.mrk.json")["markups"] == []
    assert not np.asarray(nibabel.load(tmp_path / "nifti/case.nii.gz").dataobj).any()


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
        ({"space": "prepared"}, "space is 'prepared', wanted 'source'"),
        ({"scores": None}, "scores is None, wanted a list"),
        ({"classes": "nodule"}, "classes is 'nodule', wanted a list of names"),
        ({"labels": [0, 2]}, "labels has 2, wanted whole numbers from 0 to 1"),
        ({"labels": [0, 0.5]}, "labels has 0.5"),
        ({"labels": [0]}, r"labels has shape \(1,\)"),
        ({"scores": [0.5, float("nan")]}, "scores row 1 is nan"),
        ({"boxes": [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]}, "boxes is ragged"),
        ({"boxes": [[0, 0, 0, 1, 1, 1], [3, 0, 0, 1, 1, 1]]}, r"boxes row 1 is \[3.0"),
        ({"boxes_ras_mm": [[0, 0, 0, 1, 1, 1]]}, r"boxes_ras_mm has shape \(1, 6\)"),
        ({"boxes_ras_mm": [[0, 0, 0, 1, 1, float("inf")]] * 2}, "boxes_ras_mm row 0"),
        ({"shape_zyx": [20, 24]}, r"shape_zyx has shape \(2,\)"),
        ({"shape_zyx": [20, 24, 0]}, "shape_zyx has 0"),
        ({"affine": np.zeros((4, 4)).tolist()}, "affine is .* wanted one that can be inverted"),
        ({"affine": None}, "affine has shape"),
    ],
)
def test_wrong_detections_are_refused_by_name(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^case '.*': .*{message}"):
        write_case(tmp_path, TWO | change)
    with pytest.raises(ValueError, match=f"{next(iter(change))} is missing"):
        write_case(tmp_path, {name: value for name, value in TWO.items() if name not in change})
    assert not list(tmp_path.iterdir())


# ---- a full disk


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


# ---- the schemas


def test_the_schemas_are_schemas_and_refuse_what_is_wrong() -> None:
    for kind in ("detections", "truth"):
        jsonschema.Draft202012Validator.check_schema(read_schema(kind))
    schema = read_schema("detections")
    jsonschema.validate(TWO | {"model": "any key may stand beside them"}, schema)
    wrong = [
        {"schema": "girih-detections/2"},
        {"space": "prepared"},
        {"case_id": ""},
        {"shape_zyx": [1, 2]},
        {"shape_zyx": [1, 2, 0]},
        {"affine": np.eye(3).tolist()},
        {"affine": np.ones((4, 4)).tolist()},
        {"boxes": [[0, 0, 0, 1, 1]]},
        {"boxes": [[0, 0, 0, 1, 1, float("inf")]]},
        {"scores": [True]},
        {"scores": [-float("inf")]},
        {"labels": [-1]},
        {"labels": [0.5]},
        {"classes": [1]},
    ]
    for change in wrong:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(TWO | change, schema)
    for name in TWO:
        with pytest.raises(jsonschema.ValidationError, match=f"'{name}' is a required property"):
            jsonschema.validate({key: value for key, value in TWO.items() if key != name}, schema)
    with pytest.raises(jsonschema.ValidationError, match="'patient_id' is a required"):
        jsonschema.validate(TWO, read_schema("truth"))


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(0, 4),
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_restore_makes_is_of_the_schema_and_is_accepted(n, degrees, spacing, seed) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(-3, 20, (n, 3))
    boxes = np.concatenate([low, low + rng.uniform(0, 9, (n, 3))], axis=1)
    made = json.loads(json.dumps(detections(boxes, rng.random(n), affine=oblique(degrees, spacing)), allow_nan=False))
    jsonschema.validate(made, read_schema("detections"))
    assert len(case_boxes(made, "here").boxes) == n


def test_the_truth_that_preparing_writes_is_of_the_schema(tmp_path: Path) -> None:
    """Masks, boxes, spheres with an ignored one, and none at all."""
    source, rng = tmp_path / "source", np.random.default_rng(0)
    source.mkdir()
    affine = oblique(degrees=(5, 0, 0), spacing_xyz=(1, 1, 1))
    for name in "mbse":
        girih_data3d.write_nifti(rng.normal(size=SHAPE).astype(np.float32), source / f"{name}.nii.gz", affine=affine)
    instances = np.zeros(SHAPE, np.int16)
    instances[3:6, 4:9, 5:8] = 1
    girih_data3d.write_nifti(instances, source / "m_objects.nii.gz", affine=affine)
    centre = (affine @ [10, 10, 10, 1])[:3].tolist()
    cases = [
        {"case_id": "m", "images": ["m.nii.gz"], "instances": "m_objects.nii.gz", "patient_id": "p"},
        {"case_id": "b", "images": ["b.nii.gz"], "objects": [{"class": 0, "box_zyx": [2, 2, 2, 5, 6, 7]}]},
        {
            "case_id": "s",
            "images": ["s.nii.gz"],
            "objects": [{"class": 0, "center_ras_mm": centre, "diameter_mm": 6.0, "ignore": True}],
        },
        {"case_id": "e", "images": ["e.nii.gz"], "objects": []},
    ]
    manifest = {"schema": 1, "name": "d", "classes": ["nodule"], "cases": cases}
    (source / "dataset.json").write_text(json.dumps(manifest))
    spec = girih_data3d.PrepareSpec(target_zyx_mm=(1.0, 1.0, 1.0))
    report = girih_data3d.prepare_many(girih_data3d.read_manifest(source), tmp_path / "store", spec, workers=0)
    assert not report.failed
    store = girih_data3d.Store.open(tmp_path / "store")
    truths = {case_id: json.loads(json.dumps(store[case_id].truth, allow_nan=False)) for case_id in store.case_ids}
    for truth in truths.values():
        jsonschema.validate(truth, read_schema("truth"))
    assert sorted(truths) == list("bems")
    assert truths["s"]["ignore"] == [True]
    assert truths["s"]["diameters_mm"] == [6.0]
    for change in ({"ignore": [1]}, {"diameters_mm": [-1]}, {"centers_ras_mm": [[0, 0]]}, {"patient_id": ""}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(truths["s"] | change, read_schema("truth"))


# ---- 3D Slicer


def slicer_corners_lps(roi: dict) -> np.ndarray:
    """The eight corners of a region, in the way that Slicer builds them: everything to RAS, then centre and axes."""
    centre, orientation = np.array(roi["center"]), np.array(roi["orientation"]).reshape(3, 3)
    if roi["coordinateSystem"] == "LPS":
        centre, orientation = centre * [-1, -1, 1], orientation * np.array([[-1], [-1], [1]])
    axes = orientation / np.linalg.norm(orientation, axis=0)
    half = np.array(list(itertools.product((-0.5, 0.5), repeat=3))) * roi["size"]
    return (centre + half @ axes.T) * [-1, -1, 1]


def itk_corners_lps(image: SimpleITK.Image, box) -> np.ndarray:
    edges = itertools.product((box[2], box[5]), (box[1], box[4]), (box[0], box[3]))
    return np.array([image.TransformContinuousIndexToPhysicalPoint([e - 0.5 for e in corner]) for corner in edges])


def assert_same_points(found: np.ndarray, wanted: np.ndarray, atol: float) -> None:
    """Each of the wanted points is found, in whatever order."""
    distance = np.linalg.norm(found[:, None] - wanted[None], axis=-1)
    assert distance.shape == (8, 8)
    assert max(distance.min(axis=0).max(), distance.min(axis=1).max()) <= atol


def itk_image(affine: np.ndarray) -> SimpleITK.Image:
    image = SimpleITK.Image([SHAPE[2], SHAPE[1], SHAPE[0]], SimpleITK.sitkUInt8)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def test_a_region_by_hand() -> None:  # voxels of 2 x 3 x 4 mm along x, y, z; the box is voxels x 1-2, y 2-4, z 3-6
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    found = case_boxes(detections([[3, 2, 1, 7, 5, 3]], [0.5], labels=[1], affine=affine), "here")
    (roi,) = markups(found)["markups"]
    assert roi["size"] == [4, 9, 16]
    assert roi["center"] == [-3, -9, 18]  # RAS (2 * 1.5, 3 * 3, 4 * 4.5)
    assert roi["orientation"] == [-1, 0, 0, 0, -1, 0, 0, 0, 1]
    assert roi["name"] == "cyst 0.500"
    assert roi["controlPoints"][0]["position"] == roi["center"]
    assert roi["controlPoints"][0]["description"] == "case, box 1"


def test_regions_are_the_boxes_in_all_48_orientations_and_oblique() -> None:
    boxes = [[2, 3, 4, 8, 9, 11], [1.5, 10.25, 20, 5, 12, 30.5]]
    for permutation in itertools.permutations(range(3)):
        for signs in itertools.product((-1, 1), repeat=3):
            turn = np.eye(3)[list(permutation)] * np.array(signs)
            for degrees in ((0, 0, 0), (20, -35, 50)):
                affine = oblique(degrees, turn=turn)
                written = json.loads(json.dumps(markups(case_boxes(detections(boxes, [0.9, 0.1], affine=affine), ""))))
                jsonschema.validate(written, MARKUPS_SCHEMA)
                assert len(written["markups"]) == 2
                for roi, box in zip(written["markups"], boxes, strict=True):
                    assert_same_points(slicer_corners_lps(roi), itk_corners_lps(itk_image(affine), box), atol=1e-9)
                    axes = np.array(roi["orientation"]).reshape(3, 3)
                    assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
                    assert np.linalg.det(axes) == pytest.approx(1)  # Slicer turns regions, it does not mirror them


def test_a_region_lies_in_the_scan_that_itk_reads(tmp_path: Path) -> None:
    """From the scan's file to the file of regions: in an oblique scan the region is the rotated box, not its hull."""
    girih_data3d.write_nifti(np.zeros(SHAPE, np.float32), tmp_path / "scan.nii.gz", affine=oblique())
    scan = SimpleITK.ReadImage(str(tmp_path / "scan.nii.gz"))
    made = detections(TWO["boxes"], TWO["scores"], affine=nibabel.load(tmp_path / "scan.nii.gz").affine)
    write_case(tmp_path / "out", made, formats=["slicer"])
    written = strict_json(tmp_path / "out/slicer/case.mrk.json")
    jsonschema.validate(written, MARKUPS_SCHEMA)
    for roi, box, hull in zip(written["markups"], made["boxes"], made["boxes_ras_mm"], strict=True):
        assert_same_points(slicer_corners_lps(roi), itk_corners_lps(scan, box), atol=1e-3)
        assert np.prod(roi["size"]) < 0.8 * np.prod(np.array(hull[3:]) - hull[:3])


def test_classes_have_colours_and_their_names_any_letters() -> None:
    names = ["a", 'x"</script>', "größe\n"]
    made = detections([[0, 0, 0, 1, 1, 1]] * 3, [0.9, 0.8, 0.7], labels=[0, 1, 2], classes=names)
    written = json.loads(json.dumps(markups(case_boxes(made, ""))))
    jsonschema.validate(written, MARKUPS_SCHEMA)
    assert [roi["name"].rsplit(" ", 1)[0] for roi in written["markups"]] == names
    assert len({tuple(roi["display"]["selectedColor"]) for roi in written["markups"]}) == 3


# ---- instance NIfTI


def brute_force(made: dict, min_score: float = 0.0) -> np.ndarray:
    """Voxel by voxel: the best box whose half-open edges hold the voxel's centre."""
    volume = np.zeros(SHAPE, int)
    for index in np.ndindex(*SHAPE):
        best = -1.0
        for row, (box, score) in enumerate(zip(made["boxes"], made["scores"], strict=True)):
            inside = all(low <= i + 0.5 < high for i, low, high in zip(index, box[:3], box[3:], strict=True))
            if inside and score > best and score >= min_score:
                volume[index], best = row + 1, score
    return volume


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4), min_score=st.sampled_from([0.0, 0.5]))
def test_a_voxel_belongs_to_the_best_box_that_holds_its_centre(seed: int, n: int, min_score: float) -> None:
    rng = np.random.default_rng(seed)
    low = rng.integers(-4, 40, (n, 3)) / 2  # halves: edges and centres coincide often
    made = detections(np.concatenate([low, low + rng.integers(2, 30, (n, 3)) / 2], axis=1), rng.integers(0, 4, n) / 4)
    made |= {"boxes": np.round(made["boxes"], 6).tolist()}  # away with the rounding of restore
    centres = [np.arange(size) + 0.5 for size in SHAPE]
    held = [
        all(((low <= c) & (c < high)).any() for c, low, high in zip(centres, box[:3], box[3:], strict=True))
        for box in made["boxes"]
    ]
    for name in ("boxes", "boxes_ras_mm", "scores", "labels"):  # boxes that hold no centre: see the next test
        made[name] = list(itertools.compress(made[name], held))
    assert_array_equal(instance_volume(case_boxes(made, ""), min_score=min_score), brute_force(made, min_score))


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        ([3, 4, 5, 4, 5, 6], (slice(3, 4), slice(4, 5), slice(5, 6))),  # one voxel
        ([3.5, 4, 5, 5.5, 5, 6], (slice(3, 5), slice(4, 5), slice(5, 6))),  # centres 3.5 in, 5.5 out: half-open
        ([3.5 + 1e-12, 4, 5, 4.5 + 1e-12, 5, 6], (slice(3, 4), slice(4, 5), slice(5, 6))),  # 3.5 but for rounding
        ([3.6, 4.6, 5.6, 3.7, 4.7, 5.7], (slice(3, 4), slice(4, 5), slice(5, 6))),  # no centre: the voxel around it
        ([3.6, 2, 5, 4.2, 9, 6], (slice(3, 4), slice(2, 9), slice(5, 6))),  # thin along z only
        ([3, 4, 5, 3, 4, 5], (slice(3, 4), slice(4, 5), slice(5, 6))),  # a point
        ([-0.4, -9, 26, 0.2, 2, 40], (slice(0, 1), slice(0, 2), slice(26, 28))),  # over the border
        ([-0.4, 0, 28.1, -0.1, 1, 28.3], (slice(0, 1), slice(0, 1), slice(27, 28))),  # beside the grid: the nearest
    ],
)
def test_which_voxels_a_box_fills(box: list[float], wanted: tuple) -> None:
    made = detections([[0] * 6], [0.5]) | {"boxes": [box]}
    volume = instance_volume(case_boxes(made, ""))
    expected = np.zeros(SHAPE, np.int16)
    expected[wanted] = 1
    assert_array_equal(volume, expected)
    assert volume.dtype == np.int16


def test_many_boxes_are_numbered_beyond_int16() -> None:
    n = 2**15
    made = detections([[0, 0, 0, 1, 1, 1]], [0.5])
    made |= {name: made[name] * n for name in ("boxes", "boxes_ras_mm", "labels")}
    made |= {"scores": np.linspace(0, 1, n).tolist()}
    volume = instance_volume(case_boxes(made, ""))
    assert volume.dtype == np.int32
    assert volume.max() == n  # the last row has the highest score


def test_the_nifti_by_two_readers(tmp_path: Path) -> None:
    """nibabel and SimpleITK find row k's voxels at k + 1, where the source scan has them."""
    affine = oblique()
    girih_data3d.write_nifti(np.zeros(SHAPE, np.float32), tmp_path / "scan.nii.gz", affine=affine)
    boxes = [[2, 3, 4, 8, 9, 11], [5, 6, 8, 10, 12, 20]]  # they overlap; the first has the higher score
    write_case(tmp_path, detections(boxes, [0.9, 0.8], affine=affine), formats=["nifti"])
    by_nibabel = nibabel.load(tmp_path / "nifti/case.nii.gz")
    voxels = np.asarray(by_nibabel.dataobj).transpose(2, 1, 0)
    by_itk, scan = (
        SimpleITK.ReadImage(str(tmp_path / "nifti/case.nii.gz")),
        SimpleITK.ReadImage(str(tmp_path / "scan.nii.gz")),
    )
    expected = np.zeros(SHAPE)
    expected[5:10, 6:12, 8:20] = 2
    expected[2:8, 3:9, 4:11] = 1
    assert_array_equal(voxels, expected)
    assert_array_equal(SimpleITK.GetArrayFromImage(by_itk), expected)
    assert by_nibabel.get_data_dtype() == np.int16
    assert_allclose(by_nibabel.affine, affine, atol=1e-5)
    for name in ("GetSize", "GetOrigin", "GetDirection", "GetSpacing"):
        assert_allclose(getattr(by_itk, name)(), getattr(scan, name)(), atol=1e-6)
    seen = itk_corners_lps(by_itk, boxes[0]) * [-1, -1, 1]
    assert_allclose([*seen.min(axis=0), *seen.max(axis=0)], detections(boxes[:1], [1])["boxes_ras_mm"][0], atol=1e-3)


def test_memory_is_one_int16_volume(tmp_path: Path) -> None:
    """300 x 512 x 512 voxels, all filled, in a process of its own: 150 MiB and a little."""
    script = """
        import sys
        from pathlib import Path
        import numpy as np
        from girih.outputs import write_case

        def peak_mib():
            status = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

        shape = [300, 512, 512]
        row = [0, 0, 0, *shape]
        case = {"schema": "girih-detections/1", "case_id": "a", "classes": ["n"], "shape_zyx": shape, "space": "source",
                "affine": np.eye(4).tolist(), "boxes": [row], "boxes_ras_mm": [row], "scores": [0.5], "labels": [0]}
        before = peak_mib()
        write_case(Path(sys.argv[1]), case, formats=["nifti"])
        print(peak_mib() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    peak_mib = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 145 < peak_mib < 175
