"""The command line, end to end on small files."""

import csv

import numpy as np
import pytest
import xarray as xr

from girih_metrics import Loaded, Preset, read_format, write_format
from girih_metrics.cli import main


@pytest.fixture
def files(case_a, tmp_path):
    write_format("girih", Loaded(case_a, ("a",), "voxel"), tmp_path / "good", tmp_path / "truth")
    for case in case_a:
        case["pred_scores"] = 1 - case["pred_scores"]
    write_format("girih", Loaded(case_a, ("a",), "voxel"), tmp_path / "bad", tmp_path / "truth")
    return tmp_path


def test_evaluate(files, capsys):
    out, plot = files / "scores.nc", files / "froc.png"
    command = ["evaluate", str(files / "good"), str(files / "truth"), "--draws", "50", "--min-score", "0.65"]
    command.append("--nndetection-compat")
    assert main([*command, "--size-edges", "0", "50", "inf", "--plot", str(plot), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "protocol paper: 4 images (1 without objects), 4 patients, 3 objects" in text
    assert "mAP@0.1                  0.2990  [" in text
    assert "from score 0.65 on, at threshold 0.1: sensitivity 0.3333, precision 0.2500" in text
    assert "AP_IoU_0.10_MaxDet_100                   0.2990" in text
    assert "size 0 to 50 voxel, 3 objects: mAP@0.1 0.2990" in text
    assert plot.read_bytes().startswith(b"\x89PNG")
    with xr.open_dataset(out, engine="scipy") as result:
        assert result["score"].sel(metric="FROC@0.1").item() == pytest.approx(0.476190, abs=5e-7)


def test_compare(files, capsys):
    methods = [f"{name}={files / name}" for name in ("good", "bad")]
    command = ["compare", str(files / "truth"), *methods, "--draws", "20", "--permutations", "20"]
    assert main([*command, "--out", str(files / "differences.csv")]) == 0
    text = capsys.readouterr().out
    assert "good - bad" in text
    assert "Holm" in text
    assert (files / "differences.csv").read_text().startswith("variable,")
    assert main(["compare", str(files / "truth"), "good", "bad"]) == 2
    assert "wanted NAME=PREDICTIONS" in capsys.readouterr().err


def test_convert_and_evaluate_other_formats(files, capsys):
    for name, places in (("csv", ("p.csv", "t.csv")), ("coco", ("p.json", "t.json")), ("nndetection", ("p", "t"))):
        paths = [str(files / name / part) for part in places]
        assert (
            main(["convert", str(files / "good"), str(files / "truth"), *paths, "--from", "girih", "--to", name]) == 0
        )
        assert "4 cases, classes a, boxes in voxel" in capsys.readouterr().out
        assert main(["evaluate", *paths, "--format", name, "--draws", "0"]) == 0
        assert "mAP@0.1                  0.2990\n" in capsys.readouterr().out
    back = [str(files / "back" / part) for part in ("p", "t")]
    assert (
        main(
            ["convert", *[str(files / "csv" / p) for p in ("p.csv", "t.csv")], *back, "--from", "csv", "--to", "girih"]
        )
        == 0
    )
    assert len(read_format("girih", *back).cases) == 4


def test_absent_classes_are_named(files, capsys, case_a):
    write_format("girih", Loaded(case_a, ("a", "gone"), "voxel"), files / "p", files / "t")
    assert main(["evaluate", str(files / "p"), str(files / "t"), "--draws", "0"]) == 0
    assert "without ground truth: gone" in capsys.readouterr().out


def test_wrong_input_is_one_line_and_exit_2(files, capsys):
    (files / "good" / "1.json").unlink()
    assert main(["evaluate", str(files / "good"), str(files / "truth")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("girih-metrics: ")
    assert "no prediction file for case '1'" in error
    assert error.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        main(["evaluate"])
    assert stop.value.code == 2


def test_compare_without_draws_and_with_bca(files, capsys):
    methods = [f"{name}={files / name}" for name in ("good", "bad")]
    command = ["compare", str(files / "truth"), *methods, "--permutations", "5", "--draws"]
    assert main([*command, "0"]) == 0
    assert "[" not in capsys.readouterr().out
    assert main([*command, "30"]) == 0
    percentile = capsys.readouterr().out.split("good - bad")[1]
    assert main([*command, "30", "--interval", "bca"]) == 0
    assert capsys.readouterr().out.split("good - bad")[1] != percentile


def test_sizes_of_point_marks(case_a, tmp_path, capsys):
    write_format("luna16", Loaded(case_a, ("nodule",), "mm"), tmp_path / "p.csv", tmp_path / "t")
    command = ["evaluate", str(tmp_path / "p.csv"), str(tmp_path / "t"), "--format", "luna16", "--protocol", "luna16"]
    command += ["--draws", "0", "--size-edges", "5", "15"]
    assert main(command) == 2
    assert "no prediction has a volume" in capsys.readouterr().err
    assert main([*command, "--size-false-positives", "all"]) == 0
    text = capsys.readouterr().out
    whole = text.split("CPM")[1].split()[0]
    assert f"size 5 to 15 mm, 3 objects: CPM {whole}" in text  # all objects are 10 mm: the same, false positives too


def test_outputs_are_checked_before_anything_is_counted(files, capsys):
    nowhere = [str(files / "nowhere"), str(files / "truth")]
    assert main(["evaluate", *nowhere, "--out", "scores.xlsx"]) == 2
    assert "suffix is '.xlsx'; wanted .nc, .zarr or .csv" in capsys.readouterr().err
    assert main(["evaluate", *nowhere, "--plot", "froc.doc"]) == 2
    assert "wanted .png, .pdf or .svg" in capsys.readouterr().err
    assert main(["compare", str(files / "truth"), "a=nowhere", "b=nowhere", "--out", "x"]) == 2
    assert "suffix is ''" in capsys.readouterr().err


def test_csv_of_a_comparison_names_the_methods(files):
    methods = [f"{name}={files / name}" for name in ("good", "bad")]
    out = files / "differences.csv"
    assert (
        main(["compare", str(files / "truth"), *methods, "--draws", "5", "--permutations", "5", "--out", str(out)]) == 0
    )
    with out.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["variable"] == "p"]
    assert {(row["first"], row["second"]) for row in rows} == {("good", "bad")}
    assert [row["metric"] for row in rows] == ["mAP@0.1", "FROC@0.1"]


def test_compare_methods_that_predict_different_classes(case_a, tmp_path, capsys):
    """One method never predicts class b, the other class c: both are scored on the same classes."""
    case_a[2]["gt_boxes"], case_a[2]["gt_labels"] = case_a[0]["gt_boxes"], np.array([1])
    for name, formats, classes in (("csv", ("csv", "voxel"), ("a", "b", "c")), ("monai", ("monai", "mm"), None)):
        command = ["compare", str(tmp_path / f"{name}-t")]
        for method, label in (("one", 0), ("two", 2)):
            case_a[2]["pred_labels"] = np.array([label])
            places = tmp_path / f"{name}-{method}", tmp_path / f"{name}-t"
            write_format(formats[0], Loaded(case_a, classes or ("x", "y", "z"), formats[1]), *places)
            command.append(f"{method}={places[0]}")
        command += ["--format", name, "--draws", "0", "--permutations", "5"]
        assert main(command) == 0
        text = capsys.readouterr().out
        assert f"without ground truth: {'c' if name == 'csv' else 'class2'}\n" in text
        assert main([*command, "--classes", "a,b,c"]) == 0
        assert "without ground truth: c\n" in capsys.readouterr().out
        assert main([*command, "--classes", "a"]) == 2


def test_compare_knows_the_unit(files, case_a, capsys):
    for name in ("good", "bad"):
        write_format("girih", Loaded(case_a, ("a",), "mm"), files / f"{name}-mm", files / "truth-mm")
    command = ["compare", str(files / "truth-mm"), *[f"{name}={files / name}-mm" for name in ("good", "bad")]]
    out = files / "d.nc"
    assert main([*command, "--draws", "0", "--permutations", "5"]) == 2
    assert "boxes is missing" in capsys.readouterr().err
    assert main([*command, "--draws", "0", "--permutations", "5", "--unit", "mm", "--out", str(out)]) == 0
    with xr.open_dataset(out, engine="scipy") as result:
        assert result.attrs["unit"] == "mm"


def test_methods_are_matched_once(files, monkeypatch):
    calls = []
    original = Preset.match
    monkeypatch.setattr(
        Preset, "match", lambda self, *a, **k: calls.append(self.rules["unit"]) or original(self, *a, **k)
    )
    methods = [f"{name}={files / name}" for name in ("good", "bad")]
    assert main(["compare", str(files / "truth"), *methods, "--draws", "0", "--permutations", "5"]) == 0
    assert calls == ["voxel", "voxel"]
    assert main(["evaluate", str(files / "good"), str(files / "truth"), "--draws", "0", "--min-score", "0.5"]) == 0
    assert calls == ["voxel"] * 3


@pytest.mark.parametrize("name", ["ribfrac", "picai", "cada"])
def test_protocols_that_need_masks_are_not_offered(files, name, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", str(files / "good"), str(files / "truth"), "--protocol", name])
    assert "invalid choice" in capsys.readouterr().err


def test_convert_says_what_it_leaves_out_and_refuses_units(files, capsys, case_a):
    case_a[0]["group"] = "patient"
    write_format("girih", Loaded(case_a, ("a",), "voxel"), files / "p", files / "t")
    command = ["convert", str(files / "p"), str(files / "t"), str(files / "p.json"), str(files / "t.json")]
    assert main([*command, "--from", "girih", "--to", "coco"]) == 0
    assert "left out, as coco does not hold them: group\n" in capsys.readouterr().out
    assert main(["evaluate", *command[3:], "--format", "coco", "--unit", "mm"]) == 2
    assert "unit is 'mm'; coco files hold boxes in voxel" in capsys.readouterr().err
