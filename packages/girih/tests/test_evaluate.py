import json
from pathlib import Path

import pytest

from girih.commands.evaluate import Evaluate, evaluate


def write(folder: Path, case_id: str, boxes: list, patient: str | None = None) -> None:
    folder.mkdir(exist_ok=True)
    content = {
        "schema": "girih-detections/1", "case_id": case_id, "classes": ["a"], "shape_zyx": [50, 50, 50],
        "affine": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "space": "source",
        "boxes": boxes, "labels": [0] * len(boxes), "boxes_ras_mm": boxes,
    }  # fmt: skip
    if patient is None:
        content["scores"] = [0.9 - 0.1 * k for k in range(len(boxes))]
    else:
        content |= {"patient_id": patient, "ignore": [False] * len(boxes)}
    (folder / f"{case_id}.json").write_text(json.dumps(content))


CUBE, FAR = [0, 0, 0, 10, 10, 10], [30, 30, 30, 40, 40, 40]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    good, bad, truth = tmp_path / "good", tmp_path / "bad", tmp_path / "truth"
    for number in range(4):
        write(truth, f"c{number}", [CUBE], patient=f"p{number}")
        write(good, f"c{number}", [CUBE])
        write(bad, f"c{number}", [FAR, CUBE] if number < 2 else [FAR])
    return good, bad, truth


def test_perfect_predictions_score_one(folders: tuple[Path, Path, Path]) -> None:
    good, _, truth = folders
    scores = evaluate({"good": good}, truth, draws=50)["good"]
    assert scores["ap"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert scores["froc"]["value"] == 1.0
    assert scores["cases"]["c0"] == {"tp": [True], "fp": [False], "hit": [True]}
    assert (scores["n_images"], scores["n_patients"], scores["n_objects"]) == (4, 4, 4)
    json.dumps(scores, allow_nan=False)


def test_methods_are_compared_on_the_same_draws(folders: tuple[Path, Path, Path]) -> None:
    good, bad, truth = folders
    scores = evaluate({"good": good, "bad": bad}, truth, draws=200)
    difference = scores["good"]["difference"]["bad"]["ap"]
    assert difference["value"] == scores["good"]["ap"]["value"] - scores["bad"]["ap"]["value"] > 0
    mirrored = scores["bad"]["difference"]["good"]["ap"]
    assert mirrored["low"] == pytest.approx(-difference["high"])


def test_one_patient_has_no_interval(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    good, _, _ = folders
    truth = tmp_path / "one"
    for number in range(4):
        write(truth, f"c{number}", [CUBE], patient="p")
    scores = evaluate({"good": good}, truth, draws=10)["good"]
    assert scores["ap"] == {"value": 1.0, "low": None, "high": None}
    assert "no intervals" in scores["notes"][0]
    images = evaluate({"good": good}, truth, resample="images", draws=10)["good"]
    assert images["ap"]["low"] == 1.0
    assert any("understate" in note for note in images["notes"])


def test_the_command_writes_scores_beside_the_predictions(folders, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, truth = folders
    Evaluate(predictions=(good, bad), truth=truth, draws=20).run()
    assert json.loads(good.with_name("good.scores.json").read_text())["ap"]["value"] == 1.0
    assert "bad minus good" in capsys.readouterr().out
    with pytest.raises(ValueError, match="told apart by their names"):
        Evaluate(predictions=(good, good), truth=truth).run()


def test_no_ground_truth_is_undefined_and_still_json(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / "truth", f"c{number}", [], patient=f"p{number}")
        write(tmp_path / "found", f"c{number}", [CUBE])
    scores = evaluate({"found": tmp_path / "found"}, tmp_path / "truth", draws=10)["found"]
    assert scores["ap"] == {"value": None, "low": None, "high": None}
    json.dumps(scores, allow_nan=False)
