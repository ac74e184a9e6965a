"""The command line, end to end on small files."""

import pytest
import xarray as xr

from girih_metrics import Loaded, read_format, write_format
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
