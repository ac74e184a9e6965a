"""Plans as JSON: what was written comes back, and what is wrong is named."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import girih_data3d as d3
from girih_data3d.readable_json import readable_json

PLAN = d3.Plan(
    encoder={
        "class": "ResidualEncoder",
        "kwargs": {"channels": [8, 16, 32], "downsampling": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "blocks": [1, 1, 1]},
    },
    neck={"class": "UFPN", "kwargs": {"out_channels": 16, "first_level": 1}},
    patch_zyx=(16, 32, 32),
    batch_size=2,
    levels=(1, 2),
    anchors={"sizes_zyx_voxels": [[1, 2, 3], [4, 5, 6]], "mean_best_iou": 0.5},
    spacing_zyx_mm=(2.0, 1, 1),
    normalisation={"scheme": "ct", "clip": [-100.0, 300.0], "mean": [20.0], "std": [60.0]},
    classes=("nodule",),
    notes=("by hand",),
)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    d3.write_plan(PLAN, tmp_path / "plan.json")
    again = d3.read_plan(tmp_path / "plan.json")
    assert again == PLAN
    d3.write_plan(again, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["again.json", "plan.json"]


def test_a_plan_reads_and_compares_line_by_line() -> None:
    lines = readable_json(PLAN.to_json()).splitlines()
    assert ' "anchors": {"sizes_zyx_voxels": [[1, 2, 3], [4, 5, 6]], "mean_best_iou": 0.5},' in lines
    many = readable_json({"anchors": {"sizes": [[k, k] for k in range(40)], "none": []}, "a": "\u00e4"})
    assert many.splitlines()[:3] == ["{", ' "anchors": {', '  "sizes": [']
    assert json.loads(many)["anchors"]["sizes"][39] == [39, 39]
    assert "   [7, 7],\n" in many
    changed = readable_json(replace(PLAN, batch_size=4, patch_zyx=(32, 32, 32)).to_json()).splitlines()
    assert [b for a, b in zip(lines, changed, strict=True) if a != b] == [
        ' "patch_zyx": [32, 32, 32],',
        ' "batch_size": 4,',
    ]
    assert list(PLAN.to_json())[:4] == ["schema", "dataset", "dataset_fingerprint_sha256", "classes"]


def test_a_plan_says_how_to_prepare() -> None:
    spec = PLAN.prepare_spec(d3.PrepareSpec(dtype="float16"))
    assert spec.target_zyx_mm == (2, 1, 1)
    assert spec.record == {"scheme": "ct", "clip": [-100, 300], "mean": [20], "std": [60]}
    assert spec.dtype == "float16"
    assert replace(PLAN, spacing_zyx_mm=None, normalisation=None).prepare_spec() == d3.PrepareSpec()


def encoder(**changes: Any) -> dict[str, Any]:
    return {"encoder": {"class": "ResidualEncoder", "kwargs": {**PLAN.encoder["kwargs"], **changes}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema is 2, wanted 1"),
        ({"schema": True}, "schema is True, wanted 1"),
        ({"schema": 1.0}, "schema is 1.0, wanted 1"),
        ({"classes": ["a", "a"]}, r"field 'classes' is \['a', 'a'\], wanted names, each once"),
        ({"classes": [""]}, "field 'classes'"),
        ({"patch_zyx": [8192, 8192, 8192]}, "field 'patch_zyx' is .*, wanted at most 2147483648 voxels"),
        ({"batch_size": 10**12}, "field 'batch_size' is 1000000000000"),
        ({"spacing_zyx_mm": [1, 1, 1e6]}, "field 'spacing_zyx_mm'"),
        (
            {"anchors": {"sizes_zyx_voxels": [[1, 2, 3]], "mean_iou": 1}},
            "field 'anchors' has the unknown key 'mean_iou",
        ),
        ({"encoder": {**PLAN.encoder, "kwarg": 1}}, "field 'encoder' is .*and no other key"),
        ({"neck": {"class": "UFPN", "kwargs": {}, "x": 1}}, "field 'neck' is .*and no other key"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"patch_zyx": [48, 48]}, r"field 'patch_zyx' is \[48, 48\], wanted three"),
        ({"patch_zyx": [48, 48, 0]}, "field 'patch_zyx'"),
        ({"patch_zyx": [16, 32, 30]}, r"field 'patch_zyx' is \[16, 32, 30\], wanted multiples of \[2, 4, 4\]"),
        ({"patch_zyx": [2, 4, 4]}, "field 'patch_zyx' .* more than one cell"),
        ({"batch_size": True}, "field 'batch_size' is True"),
        ({"batch_size": None}, "field 'batch_size' is None, wanted a whole number >= 1$"),
        ({"levels": [3, 2]}, "increasing"),
        ({"levels": [1, 3]}, r"field 'levels' is \[1, 3\], the encoder has the stages 0 to 2"),
        ({"anchors": {"sizes_zyx_voxels": []}}, "field 'anchors' is .*sizes_zyx_voxels"),
        ({"anchors": {"sizes_zyx_voxels": [[1, 2, 3], [1, 2]]}}, r"field 'anchors.sizes_zyx_voxels\[1\]' is \[1, 2\]"),
        (
            {"anchors": {"sizes_zyx_voxels": [[1, 2, 0]]}},
            r"sizes_zyx_voxels\[0\]' is \[1, 2, 0\], wanted three numbers > 0",
        ),
        ({"anchors": {"sizes_zyx_voxels": [[1, 2, 3]], "mean_best_iou": 2}}, "field 'anchors.mean_best_iou' is 2"),
        ({"encoder": "resenc"}, "field 'encoder' is 'resenc'"),
        (encoder(channels=[8, 16, 0]), r"field 'encoder.kwargs.channels' is \[8, 16, 0\]"),
        (encoder(blocks=[1, 1]), "field 'encoder.kwargs.blocks' has 2 entries, wanted one for each of the 3 channels"),
        (encoder(kernels=[[3, 3, 3]]), "field 'encoder.kwargs.kernels' has 1 entries"),
        (encoder(kernels=[[3, 3, 3], [3, 3, 2], [3, 3, 3]]), r"field 'encoder.kwargs.kernels\[1\]' is \[3, 3, 2\]"),
        (encoder(downsampling=[[1, 1, 1], [2, 2], [2, 2, 2]]), r"field 'encoder.kwargs.downsampling\[1\]' is \[2, 2\]"),
        (encoder(blocks=7), "field 'encoder.kwargs.blocks' is 7"),
        (
            {"neck": {"class": "UFPN", "kwargs": {"first_level": 2}}},
            "field 'neck.kwargs.first_level' is 2, wanted 0 to",
        ),
        ({"spacing_zyx_mm": [1, 1, -1]}, "spacing_zyx_mm"),
        ({"normalisation": {"scheme": "zscore", "colour": 1}}, "field 'normalisation' has the keys"),
        ({"normalisation": {"scheme": "loud"}}, "field 'normalisation.scheme' is 'loud', wanted one of zscore"),
        (
            {"normalisation": {"scheme": "ct", "clip": [1, 2]}},
            "field 'normalisation': scheme 'ct' needs clip, mean and",
        ),
        (
            {"normalisation": {"scheme": "zscore", "clip": [1]}},
            r"field 'normalisation.clip' is \[1\], wanted 2 numbers",
        ),
        ({"normalisation": {"scheme": "ct", "mean": ["a"]}}, r"field 'normalisation.mean' is \['a'\]"),
        ({"classes": "abc"}, "field 'classes' is 'abc', wanted a list of texts or null"),
        ({"notes": 3}, "field 'notes' is 3"),
        ({"queries": "x"}, "field 'queries' is 'x'"),
        ({"encoder": {"class": "ResidualEncoder", "kwargs": {"channels": 5}}}, "field 'encoder.kwargs.channels' is 5"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_found(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**PLAN.to_json(), **change}))
    with pytest.raises(ValueError, match=message) as caught:
        d3.read_plan(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_the_record_of_the_normalisation_is_whole() -> None:
    plan = replace(PLAN, normalisation={"scheme": "zscore"})
    assert plan.normalisation == {"scheme": "zscore", "clip": None, "mean": None, "std": None}
    assert plan.normalisation == plan.prepare_spec().record


def test_a_missing_field_is_named() -> None:
    content = PLAN.to_json()
    del content["schema"]
    with pytest.raises(ValueError, match="here: field 'schema' is missing"):
        d3.plan_from_json(content, "here")
    content = PLAN.to_json()
    del content["neck"]
    with pytest.raises(ValueError, match="here: field 'neck' is missing"):
        d3.plan_from_json(content, "here")


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "null", '{"schema": 1, "schema": 1}'])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=r"plan\.json"):
        d3.read_plan(tmp_path / "plan.json")


def test_an_encoder_that_does_not_say_its_stages_is_not_checked() -> None:
    content = {**PLAN.to_json(), "encoder": {"class": "TheirEncoder", "kwargs": {"size": "b"}}, "notes": None}
    assert d3.plan_from_json(content, "here").notes == ()


@pytest.mark.parametrize("change", [{"levels": ()}, {"anchors": {}}, {"patch_zyx": (16, 32, 31)}])
def test_a_plan_made_in_python_is_checked_too(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"field '{next(iter(change))}'"):
        replace(PLAN, **change)


def test_a_plan_is_frozen() -> None:
    with pytest.raises(AttributeError):
        PLAN.__setattr__("batch_size", 3)
    assert json.loads(json.dumps(asdict(PLAN)))["batch_size"] == 2
