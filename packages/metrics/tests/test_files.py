"""Reading girih-detections/1."""

import json

import numpy as np
import pytest

from girih_metrics import average_precision, match, read_cases, read_classes


@pytest.fixture
def folders(tmp_path):
    truth = {
        "schema": "girih-detections/1",
        "case_id": "s1",
        "classes": ["nodule"],
        "shape_zyx": [9, 9, 9],
        "affine": np.eye(4).tolist(),
        "space": "source",
        "patient_id": "p",
        "labels": [0],
        "boxes": [[0, 1, 2, 3, 4, 5]],
        "boxes_ras_mm": [[20, 10, 0, 50, 40, 30]],
        "centers_ras_mm": [[35, 25, 15]],
        "diameters_mm": [30],
    }
    for name in ("pred", "truth"):
        (tmp_path / name).mkdir()
    write(tmp_path / "truth", truth)
    write(tmp_path / "pred", {k: v for k, v in truth.items() if k != "patient_id"} | {"scores": [0.5]})
    return tmp_path / "pred", tmp_path / "truth"


def write(folder, document, text=None):
    (folder / f"{document['case_id']}.json").write_text(text if text is not None else json.dumps(document))


def change(folder, **fields):
    write(folder, json.loads((folder / "s1.json").read_text()) | fields)


def test_voxels_and_millimetres(folders):
    (voxel,), (mm,) = read_cases(*folders), read_cases(*folders, unit="mm")
    assert voxel["gt_boxes"].tolist() == [[0, 1, 2, 3, 4, 5]]
    assert mm["pred_boxes"].tolist() == [[0, 10, 20, 30, 40, 50]]
    assert mm["gt_centers"].tolist() == [[15, 25, 35]]
    assert mm["gt_diameters"].tolist() == [30]
    assert (voxel["group"], read_classes(folders[1])) == ("p", ("nodule",))
    assert average_precision(match([voxel], classes=["nodule"]))["ap"].item() == 1


def test_empty_lists_and_ignored_objects(folders):
    change(folders[0], boxes=[], scores=[], labels=[], boxes_ras_mm=[])
    change(folders[1], ignore=[True])
    (case,) = read_cases(*folders)
    assert case["pred_boxes"].shape == (0, 6)
    assert match([case], classes=["nodule"]).gt_counted.tolist() == [False]


def test_missing_prediction(folders):
    (folders[0] / "s1.json").unlink()
    with pytest.raises(ValueError, match=r"no prediction file for case 's1'"):
        read_cases(*folders)
    (case,) = read_cases(*folders, allow_missing=True)
    assert len(case["pred_scores"]) == 0


def test_prediction_for_an_unknown_case(folders):
    write(folders[0], json.loads((folders[0] / "s1.json").read_text()) | {"case_id": "s2"})
    with pytest.raises(ValueError, match="unknown case 's2'"):
        read_cases(*folders)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(folders, word):
    text = (folders[0] / "s1.json").read_text().replace("0.5", word)
    (folders[0] / "s1.json").write_text(text)
    with pytest.raises(ValueError, match="wanted finite numbers"):
        read_cases(*folders)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": "coco"}, "schema is 'coco'"),
        ({"classes": ["other"]}, r"classes are \('other',\)"),
        ({"classes": "nodule"}, "wanted a list of names"),
        ({"scores": [[0.5], [1, 2]]}, "ragged"),
        ({"scores": ["high"]}, "wanted float64"),
        ({"labels": [0.5]}, "wanted int64"),
        ({"boxes": [[1, 2, 3]]}, r"wanted \(n, 6\)"),
    ],
)
def test_broken_documents(folders, fields, message):
    change(folders[0], **fields)
    with pytest.raises(ValueError, match=message):
        read_cases(*folders)


def test_broken_files(folders, tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        read_cases(tmp_path / "nowhere", folders[1])
    (folders[0] / "s1.json").write_text("{")
    with pytest.raises(ValueError, match=r"s1\.json: is not JSON"):
        read_cases(*folders)
    (folders[0] / "s1.json").write_text("[]")
    with pytest.raises(ValueError, match="schema is 'list'"):
        read_cases(*folders)
    (folders[1] / "s1.json").rename(folders[1] / "s3.json")
    with pytest.raises(ValueError, match="case_id is 's1'; wanted the file's name, 's3'"):
        read_cases(*folders)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.json file"):
        read_classes(tmp_path / "empty")


def test_missing_field(folders):
    document = json.loads((folders[0] / "s1.json").read_text())
    del document["scores"]
    write(folders[0], document)
    with pytest.raises(ValueError, match=r"pred/s1\.json: scores is missing"):
        read_cases(*folders)


def test_centres_of_another_shape(folders):
    change(folders[1], centers_ras_mm=[[1, 2]])
    with pytest.raises(ValueError, match=r"truth/s1\.json: centers_ras_mm has shape \(1, 2\); wanted \(n, 3\)"):
        read_cases(*folders, unit="mm")
