import json
from dataclasses import asdict
from pathlib import Path

import pytest

import girih_data3d as d3
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


def test_a_file_is_a_plan_by_its_path(tmp_path: Path) -> None:
    d3.write_plan(load_plan("demo"), tmp_path / "plan.json")
    assert load_plan(str(tmp_path / "plan.json")).to_json() == load_plan("demo").to_json()
    assert Plan is d3.Plan
    assert plan_from_json is d3.plan_from_json


def test_an_unknown_name_lists_the_presets() -> None:
    with pytest.raises(ValueError, match=r"neither a preset .*resenc_l.* nor a file"):
        load_plan("resenc_xxl")
