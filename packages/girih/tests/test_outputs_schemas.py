"""What is written, and what preparing writes, is of the published schemas; what is wrong is not."""

import json
import runpy
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import girih_data3d
from girih.outputs import read_schema
from girih.outputs.case_boxes import case_boxes

CASES = runpy.run_path(str(Path(__file__).with_name("output_cases.py")))
detections, oblique, SHAPE, TWO = (CASES[name] for name in ("detections", "oblique", "SHAPE", "TWO"))


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
        {"scores": [1.5]},
        {"scores": [-0.5]},
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
