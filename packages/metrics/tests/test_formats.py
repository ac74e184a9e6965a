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
        (
            "monai",
            0,
            lambda d: d["validation"][0].update(box=[[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, "six"]]),
            r"pred\.json: 1 row 1: .*wanted numbers",
        ),
        ("monai", 0, lambda d: d["validation"][0].update(label=[0.5, 0, 0]), "wanted whole numbers"),
        ("monai", 0, lambda d: d.clear(), "validation is missing"),
        ("coco", 0, lambda d: d[0].update(image_id=77), "image_id 77"),
        ("coco", 1, lambda d: d["annotations"][0].update(category_id=77), "category_id 77"),
        ("coco", 1, lambda d: d.pop("categories"), "categories is missing"),
        ("coco", 1, lambda d: d["categories"][0].pop("id"), "categories: id is missing"),
        ("coco", 1, lambda d: d["categories"][0].update(id=[1]), r"categories: id is \[1\]"),
        ("coco", 1, lambda d: d.update(categories=None), "categories: is NoneType; wanted a list"),
        ("coco", 1, lambda d: d.update(images=[7]), "images: id is missing; found int"),
        ("coco", 1, lambda d: d["images"].append(d["images"][0]), "image id 0 occurs more than once"),
        ("coco", 1, lambda d: d["annotations"][0].update(image_id={}), "annotations row 0: image_id is {}"),
        ("coco", 0, lambda d: d[0].update(bbox=[1, 2]), r"pred\.json: case '1' row 0: "),
        ("coco", 0, lambda d: d[0].pop("score"), "case '1': score is missing"),
        ("monai", 0, lambda d: d.update(validation=None), "validation: is NoneType; wanted a list"),
        ("monai", 0, lambda d: d["validation"][1].pop("image"), "validation row 1: image is missing"),
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
        (0, "0.95", "high", r"pred\.csv: line 6, case '3': score is 'high'; wanted a finite number"),
        (0, "0.95", "nan", r"line 6, case '3': score is 'nan'"),
        (1, "1,a,0.0,", "1,a,wide,", r"truth\.csv: line 2, case '1': z0 is 'wide'"),
        (0, "1,a,0.9", "9,a,0.9", "unknown case '9'"),
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
    np.savez(paths[1] / "1_boxes_gt.npz", boxes=np.array([list("abcdef")]), classes=np.zeros(1))
    with pytest.raises(ValueError, match=r"1_boxes_gt\.npz: .*wanted numbers"):
        read_format("nndetection", *paths)
    (paths[0] / "1_boxes.json").unlink()
    with pytest.raises(ValueError, match=r"no file 1_boxes\.json"):
        read_format("nndetection", *paths)


@pytest.mark.parametrize("name", ["nndetection", "monai"])
def test_ignored_objects_are_never_dropped_in_silence(case_a, tmp_path, name):
    before, paths = loaded(case_a, name), [tmp_path / part for part in PLACES[name]]
    case_a[1]["gt_ignore"] = np.array([False])
    assert write_format(name, before, *paths) == ()
    case_a[1]["gt_ignore"] = np.array([True])
    with pytest.raises(ValueError, match=f"case '2': gt_ignore row 0 is set; {name} cannot mark ignored objects"):
        write_format(name, before, *paths)


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("girih", ("pred_points", "gt_masks")),
        ("csv", ("gt_centers", "gt_diameters", "pred_points", "gt_masks")),
        ("coco", ("group", "gt_centers", "gt_diameters", "pred_points", "gt_masks")),
        ("nndetection", ("classes", "group", "gt_centers", "gt_diameters", "pred_points", "gt_masks")),
        ("monai", ("classes", "group", "gt_centers", "gt_diameters", "pred_points", "gt_masks")),
        ("luna16", ("classes", "group", "gt_masks")),
    ],
)
def test_a_writer_says_what_it_leaves_out(case_a, tmp_path, name, dropped):
    case_a[0] |= {
        "group": "p",
        "gt_centers": np.zeros((1, 3)),
        "gt_diameters": np.ones(1),
        "pred_points": np.zeros((3, 3)),
        "gt_masks": [((0, 0, 0), np.ones((1, 1, 1), dtype=bool))],
    }
    unit = "voxel" if name in ("csv", "coco", "nndetection") else "mm"
    assert write_format(name, Loaded(case_a, ("a", "b"), unit), tmp_path / "p", tmp_path / "t") == dropped


def test_uids_survive_coco_and_monai(case_a, tmp_path):
    for k, case in enumerate(case_a):
        case["case_id"] = f"1.3.6.{k}"
    for name, unit in (("coco", "voxel"), ("monai", "mm")):
        write_format(name, Loaded(case_a, ("class0",), unit), tmp_path / "p", tmp_path / "t")
        assert [case["case_id"] for case in read_format(name, tmp_path / "p", tmp_path / "t").cases] == [
            "1.3.6.0",
            "1.3.6.1",
            "1.3.6.2",
            "1.3.6.3",
        ]
    change(tmp_path / "t", lambda d: d["validation"][0].update(image="C:\\scans\\1.3.6.0.nii.gz"))
    assert read_format("monai", tmp_path / "p", tmp_path / "t").cases[0]["case_id"] == "1.3.6.0"


@pytest.mark.parametrize("name", ["csv", "nndetection", "monai"])
def test_classes_come_from_truth_and_predictions(case_a, tmp_path, name):
    """Class 1 is only predicted: no truth, no AP, and reported."""
    case_a[2]["pred_labels"] = np.array([1])
    classes = ("a", "b") if name == "csv" else ("class0", "class1")
    paths = [tmp_path / part for part in PLACES[name]]
    write_format(name, Loaded(case_a, classes, "mm" if name == "monai" else "voxel"), *paths)
    found = read_format(name, *paths)
    assert found.classes == classes
    matches = match(found.cases, classes=found.classes)
    scores = average_precision(matches)
    assert np.isnan(scores["ap_class"].values[0, 1])
    assert scores["ap"].item() == scores["ap_class"].values[0, 0]
    assert scores.attrs["absent"] == classes[1]
    more = ("b", "a", "c") if name == "csv" else ("x", "y", "z")
    named = read_format(name, *paths, classes=more)
    assert named.classes == more
    assert named.cases[0]["gt_labels"].tolist() == [1 if name == "csv" else 0]
    with pytest.raises(ValueError, match=r"class is 'b'; wanted one of|label is 1; wanted one below 1"):
        read_format(name, *paths, classes=["a"])


def test_classes_that_files_state_are_not_renamed(case_a, tmp_path):
    write_format("coco", Loaded(case_a, ("a",), "voxel"), tmp_path / "p", tmp_path / "t")
    assert read_format("coco", tmp_path / "p", tmp_path / "t", classes=["a"]).classes == ("a",)
    with pytest.raises(ValueError, match=r"classes are \('b',\); the files of coco state \('a',\)"):
        read_format("coco", tmp_path / "p", tmp_path / "t", classes=["b"])


@pytest.mark.parametrize("name", ["csv", "coco"])
def test_millimetres_are_not_written_as_voxels(case_a, tmp_path, name):
    with pytest.raises(ValueError, match=f"boxes are in mm; {name} wants voxel"):
        write_format(name, Loaded(case_a, ("a",), "mm"), tmp_path / "p", tmp_path / "t")


def test_a_unit_without_effect_is_refused(case_a, tmp_path):
    write_format("csv", Loaded(case_a, ("a",), "voxel"), tmp_path / "p", tmp_path / "t")
    assert read_format("csv", tmp_path / "p", tmp_path / "t", unit="voxel").unit == "voxel"
    with pytest.raises(ValueError, match="unit is 'mm'; csv files hold boxes in voxel"):
        read_format("csv", tmp_path / "p", tmp_path / "t", unit="mm")


def test_luna16_keeps_centres_diameters_and_points(case_a, tmp_path):
    case_a[0] |= {
        "gt_centers": np.array([[1.0, 2, 3]]),
        "gt_diameters": np.array([7.0]),
        "pred_points": np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]),
    }
    write_format("luna16", Loaded(case_a, ("nodule",), "mm"), tmp_path / "p.csv", tmp_path / "t")
    (case, *_) = read_format("luna16", tmp_path / "p.csv", tmp_path / "t").cases
    assert case["gt_centers"].tolist() == [[1, 2, 3]]
    assert case["gt_diameters"].tolist() == [7]
    assert case["pred_boxes"][:, 3:].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_broken_luna16_names_line_and_column(case_a, tmp_path):
    paths = tmp_path / "p.csv", tmp_path / "t"
    write_format("luna16", Loaded(case_a, ("nodule",), "mm"), *paths)
    for path, old, new, message in (
        (paths[0], "0.95", "high", r"p\.csv: line 6, case '3': probability is 'high'"),
        (paths[1] / "annotations.csv", "10.0", "inf", r"annotations\.csv: line 2, case '1': diameter_mm is 'inf'"),
    ):
        text = path.read_text()
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            read_format("luna16", *paths)
        path.write_text(text)
    (paths[1] / "seriesuids.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"seriesuids\.csv: is not text"):
        read_format("luna16", *paths)
    (paths[1] / "seriesuids.csv").unlink()
    paths[0].write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"p\.csv: is not CSV"):
        read_format("luna16", *paths)


def test_a_truncated_archive_names_its_file(case_a, tmp_path):
    paths = [tmp_path / part for part in PLACES["nndetection"]]
    write_format("nndetection", loaded(case_a, "nndetection"), *paths)
    whole = (paths[1] / "1_boxes_gt.npz").read_bytes()
    for broken in (whole.replace(b"NUMPY", b"NUMPX"), whole[:40] + b"\0" * 60 + whole[100:]):
        (paths[1] / "1_boxes_gt.npz").write_bytes(broken)
        with pytest.raises(ValueError, match=r"1_boxes_gt\.npz: "):
            read_format("nndetection", *paths)
