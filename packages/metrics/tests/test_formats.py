"""Files of other tools: written and read back they score the same; broken ones are refused."""

import json

import numpy as np
import pytest

from girih_metrics import FORMATS, Loaded, average_precision, evaluate, froc, match, read_format, write_format

PLACES = {
    "girih": ("pred", "truth"),
    "csv": ("pred.csv", "truth.csv"),
    "nndetection": ("pred", "truth"),
    "monai": ("pred.json", "truth.json"),
    "coco": ("pred.json", "truth.json"),
    "luna16": ("pred.csv", "truth"),
}


def loaded(case_a, name):
    classes = {"girih": ("a", "b"), "csv": ("a",), "luna16": ("nodule",), "coco": ("a", "b")}.get(name, ("class0",))
    for case in case_a:
        if name in ("girih", "csv", "coco", "luna16"):
            case["gt_ignore"] = np.arange(len(case["gt_labels"])) > 9
    return Loaded(case_a, classes, "mm" if name in ("monai", "luna16") else "voxel")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_written_and_read_back(case_a, tmp_path, name):
    before = loaded(case_a, name)
    paths = [tmp_path / part for part in PLACES[name]]
    write_format(name, before, *paths)
    after = read_format(name, *paths)
    assert (after.classes, after.unit) == (before.classes, before.unit)
    assert [case["case_id"] for case in after.cases] == [case["case_id"] for case in case_a]
    for old, new in zip(case_a, after.cases, strict=True):
        for key in ("gt_boxes", "gt_labels", "pred_scores", "pred_labels", *(["pred_boxes"] * (name != "luna16"))):
            np.testing.assert_array_equal(new[key], old[key], err_msg=key)
    rules = {"criterion": "center_distance"} if name == "luna16" else {}
    scores = [match(found.cases, classes=before.classes, **rules) for found in (before, after)]
    assert average_precision(scores[1]).equals(average_precision(scores[0]))
    assert froc(scores[1]).equals(froc(scores[0]))


def test_girih_files_hold_either_unit(case_a, tmp_path):
    case_a[0]["gt_centers"], case_a[0]["gt_diameters"] = np.array([[1.0, 2, 3]]), np.array([4.0])
    write_format("girih", Loaded(case_a, ("a",), "mm"), tmp_path / "p", tmp_path / "t")
    mm = read_format("girih", tmp_path / "p", tmp_path / "t", unit="mm")
    assert mm.cases[0]["gt_centers"].tolist() == [[1, 2, 3]]
    assert mm.cases[0]["gt_diameters"].tolist() == [4]
    np.testing.assert_array_equal(mm.cases[0]["pred_boxes"], case_a[0]["pred_boxes"])
    with pytest.raises(ValueError, match="boxes is missing"):
        read_format("girih", tmp_path / "p", tmp_path / "t")


def test_units_and_names_are_checked(case_a, tmp_path):
    with pytest.raises(ValueError, match="boxes are in voxel; luna16 wants mm"):
        write_format("luna16", Loaded(case_a, ("a",), "voxel"), tmp_path / "p", tmp_path / "t")
    for call in (read_format, lambda name, p, t: write_format(name, Loaded([], ("a",), "voxel"), p, t)):
        with pytest.raises(ValueError, match="format is 'voc'"):
            call("voc", tmp_path, tmp_path)


def test_luna16_as_the_challenge_hands_it_out(tmp_path):
    truth = tmp_path / "annotations"
    truth.mkdir()
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
    (truth / "annotations.csv").write_text(header + "1.2.3,-10.5,20.25,-30,6.0\n")
    (truth / "annotations_excluded.csv").write_text(header + "1.2.3,50,50,50,-1\n")
    (truth / "seriesuids.csv").write_text("1.2.3\n1.2.4\n")
    marks = ["1.2.3,-10.5,20.25,-27.5,0.9", "1.2.3,-10.5,21,-30,0.8", "1.2.3,54.9,50,50,0.7", "1.2.4,0,0,0,0.95"]
    (tmp_path / "pred.csv").write_text("seriesuid,coordX,coordY,coordZ,probability\n" + "\n".join(marks) + "\n")
    found = read_format("luna16", tmp_path / "pred.csv", truth)
    assert found.cases[0]["gt_centers"].tolist() == [[-30, -20.25, 10.5], [50, -50, -50]]
    assert found.cases[0]["gt_diameters"].tolist() == [6, 10]
    # One false positive (scan 1.2.4) above the hit: 0.5 per scan; double and excluded marks count as nothing.
    result = evaluate(found.cases, classes=found.classes, protocol="luna16", draws=0)
    assert result["score"].item() == pytest.approx(np.mean([0, 0, 1, 1, 1, 1, 1]))
    (truth / "seriesuids.csv").write_text("1.2.3\n")
    with pytest.raises(ValueError, match=r"unknown case '1\.2\.4'"):
        read_format("luna16", tmp_path / "pred.csv", truth)


def change(path, edit):
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("name", "which", "edit", "message"),
    [
        ("monai", 0, lambda d: d["validation"].append(d["validation"][0]), "'1' occurs more than once"),
        ("monai", 0, lambda d: d["validation"].pop(), "no entry for image '4'"),
        ("monai", 1, lambda d: d["validation"].pop(), "unknown case '4'"),
        ("monai", 0, lambda d: d["validation"][0].pop("score"), "score is missing"),
        ("monai", 0, lambda d: d["validation"][0].update(box=[[1, 2]]), r"wanted \(n, 6\)"),
        ("monai", 0, lambda d: d["validation"][0].update(box=[[1, 2], 3]), "wanted numbers"),
        ("monai", 0, lambda d: d["validation"][0].update(label=[0.5, 0, 0]), "wanted whole numbers"),
        ("monai", 0, lambda d: d.clear(), "validation is missing"),
        ("coco", 0, lambda d: d[0].update(image_id=77), "image_id 77"),
        ("coco", 1, lambda d: d["annotations"][0].update(category_id=77), "category_id 77"),
        ("coco", 1, lambda d: d.pop("categories"), "categories is missing"),
    ],
)
def test_broken_json(case_a, tmp_path, name, which, edit, message):
    paths = [tmp_path / part for part in PLACES[name]]
    write_format(name, loaded(case_a, name), *paths)
    change(paths[which], edit)
    with pytest.raises(ValueError, match=message):
        read_format(name, *paths)


@pytest.mark.parametrize(
    ("which", "old", "new", "message"),
    [
        (0, "score", "confidence", "column 'score' is missing"),
        (0, "0.95", "high", "wanted numbers"),
        (0, "0.95", "nan", "holds NaN"),
        (0, "1,a,0.9", "9,a,0.9", "unknown case '9'"),
        (0, "1,a,0.9", "1,z,0.9", "class is 'z'"),
        (0, "1,a,0.9,", "1,a,0.9,1,", "line 2 does not have 9 columns"),
        (1, "1,0\n", "1,2\n", "ignore is '2'"),
    ],
)
def test_broken_csv(case_a, tmp_path, which, old, new, message):
    paths = [tmp_path / part for part in PLACES["csv"]]
    write_format("csv", loaded(case_a, "csv"), *paths)
    text = paths[which].read_text().replace("\r\n", "\n")
    assert old in text
    paths[which].write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_format("csv", *paths)
    paths[which].unlink()
    with pytest.raises(ValueError, match="is not a file"):
        read_format("csv", *paths)


def test_broken_nndetection(case_a, tmp_path):
    paths = [tmp_path / part for part in PLACES["nndetection"]]
    with pytest.raises(ValueError, match=r"no file \*_boxes_gt\.npz"):
        read_format("nndetection", *paths)
    write_format("nndetection", loaded(case_a, "nndetection"), *paths)
    np.savez(paths[1] / "1_boxes_gt.npz", boxes=np.zeros((0, 6)))
    with pytest.raises(ValueError, match=r"1_boxes_gt\.npz: classes is missing"):
        read_format("nndetection", *paths)
    (paths[1] / "1_boxes_gt.npz").write_bytes(b"PK broken")
    with pytest.raises(ValueError, match=r"1_boxes_gt\.npz: is not a \.npz archive"):
        read_format("nndetection", *paths)
    np.savez(paths[1] / "1_boxes_gt.npz", boxes=np.array([{}]), classes=np.zeros(1))
    with pytest.raises(ValueError, match=r"1_boxes_gt\.npz: Object arrays cannot be loaded"):
        read_format("nndetection", *paths)
    (paths[0] / "1_boxes.json").unlink()
    with pytest.raises(ValueError, match=r"no file 1_boxes\.json"):
        read_format("nndetection", *paths)
