"""Regions of interest lie where the boxes are, by Slicer's reckoning against ITK's."""

import itertools
import json
import runpy
from pathlib import Path

import jsonschema
import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.testing import assert_allclose

import girih_data3d
from girih.outputs import write_case
from girih.outputs.case_boxes import case_boxes
from girih.outputs.slicer import markups

CASES = runpy.run_path(str(Path(__file__).with_name("output_cases.py")))
detections, oblique, strict_json = CASES["detections"], CASES["oblique"], CASES["strict_json"]
itk_corners_lps, LPS, SHAPE, TWO = (CASES[name] for name in ("itk_corners_lps", "LPS", "SHAPE", "TWO"))
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


def slicer_corners_lps(roi: dict) -> np.ndarray:
    """The eight corners of a region, in the way that Slicer builds them: everything to RAS, then centre and axes."""
    centre, orientation = np.array(roi["center"]), np.array(roi["orientation"]).reshape(3, 3)
    if roi["coordinateSystem"] == "LPS":
        centre, orientation = centre * [-1, -1, 1], orientation * np.array([[-1], [-1], [1]])
    axes = orientation / np.linalg.norm(orientation, axis=0)
    half = np.array(list(itertools.product((-0.5, 0.5), repeat=3))) * roi["size"]
    return (centre + half @ axes.T) * [-1, -1, 1]


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


def test_a_sheared_affine_has_no_regions_but_its_other_files(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    made = detections(TWO["boxes"], TWO["scores"], affine=sheared)
    with pytest.raises(ValueError, match=r"^case 'case': affine is sheared: cosine 0\.4472 .* wanted at most 0\.001"):
        write_case(tmp_path, made)
    assert not list(tmp_path.iterdir())
    write_case(tmp_path, made, formats=["csv", "nifti"])
    rounded = np.eye(4)
    rounded[0, 1] = 0.9e-3  # a header's rounding
    assert markups(case_boxes(detections(TWO["boxes"], TWO["scores"], affine=rounded), ""))["markups"]


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
