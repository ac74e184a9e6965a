import json
from dataclasses import asdict
from pathlib import Path

import pytest

from girih.plans import PRESETS, Plan, load_plan, plan_from_json


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_its_own_json(name: str) -> None:
    plan = load_plan(name)
    again = plan_from_json(json.loads(json.dumps(plan.to_json())), "here")
    assert json.dumps(asdict(again)) == json.dumps(asdict(plan))


def test_resenc_l_is_the_configuration_of_the_study() -> None:
    plan = load_plan("resenc_l")
    assert (plan.patch_zyx, plan.batch_size, plan.levels) == ((128, 128, 128), 4, (2, 3, 4, 5))
    assert len(plan.anchors["sizes_zyx_voxels"]) == 27


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema is 2, wanted 1"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"patch_zyx": [48, 48]}, r"field 'patch_zyx' is \[48, 48\], wanted three"),
        ({"patch_zyx": [48, 48, 0]}, "field 'patch_zyx'"),
        ({"batch_size": True}, "field 'batch_size' is True"),
        ({"levels": [3, 2]}, "increasing"),
        ({"anchors": {"sizes_zyx_voxels": [[1, 2]]}}, "field 'anchors' is .*sizes_zyx_voxels"),
        ({"encoder": "resenc"}, "field 'encoder' is 'resenc'"),
        ({"spacing_zyx_mm": [1, 1, -1]}, "spacing_zyx_mm"),
        ({"classes": "abc"}, "field 'classes' is 'abc', wanted a list of texts or null"),
        ({"notes": 3}, "field 'notes' is 3"),
        ({"queries": "x"}, "field 'queries' is 'x'"),
        ({"batch_size": None}, "field 'batch_size' is None, wanted a whole number >= 1$"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_found(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**load_plan("demo").to_json(), **change}))
    with pytest.raises(ValueError, match=message) as caught:
        load_plan(str(path))
    assert str(path) in str(caught.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    content = load_plan("demo").to_json()
    del content["neck"]
    with pytest.raises(ValueError, match="field 'neck' is missing"):
        plan_from_json(content, "here")


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "null"])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="plan"):
        load_plan(str(path))


def test_an_unknown_name_lists_the_presets() -> None:
    with pytest.raises(ValueError, match=r"neither a preset .*resenc_l.* nor a file"):
        load_plan("resenc_xxl")


def test_a_plan_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Plan.__setattr__(load_plan("demo"), "batch_size", 3)
