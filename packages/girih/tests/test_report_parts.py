"""The parts of the report that need no scan: files, curves, wording, verdicts."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from girih.report.files import CaseScore, FrocCurve, Interval, Scores, read_boxes, read_curves, read_scores
from girih.report.plots import at_fppi, froc_png, loss_png, moving_average, progress_png
from girih.report.slices import LUNG, SOFT_TISSUE, Plane, window_for
from girih.report.summary import limits, summary
from girih.report.verdicts import Judged


def scores_record() -> dict:
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    return {
        "schema": "girih-scores/1",
        "iou": 0.1,
        "n_images": 4,
        "n_patients": 4,
        "n_objects": 7,
        "draws": 100,
        "confidence": 0.95,
        "ap": interval,
        "froc": interval,
        "per_class": {"nodule": {"ap": None, "n_objects": 7}},
        "froc_curve": {"fppi": [0, 1, 3], "sensitivity": [0, 0.5, 0.8], "low": [0, 0.4, None], "high": [0, 0.6, 0.9]},
        "cases": {"a": {"tp": [True, False], "fp": [False, True], "hit": [True]}},
        "notes": ["a note"],
    }


def boxes_record() -> dict:
    return {
        "schema": "girih-detections/1",
        "case_id": "a",
        "classes": ["nodule"],
        "shape_zyx": [8, 9, 10],
        "affine": np.eye(4).tolist(),
        "space": "source",
        "boxes": [[1, 1, 1, 3, 3, 3]],
        "scores": [0.5],
        "labels": [0],
    }


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def the_scores(**changes: object) -> Scores:
    empty = np.empty(0)
    scores = Scores(
        iou=0.1,
        n_images=24,
        n_patients=3,
        n_objects=61,
        draws=1000,
        confidence=0.95,
        ap=Interval(0.41, 0.3, 0.52),
        froc=Interval(0.5, 0.4, 0.6),
        per_class={},
        froc_curve=FrocCurve(empty, empty, empty, empty),
        cases={},
        notes=(),
        difference={},
    )
    return dataclasses.replace(scores, **changes)


# ---- files


def test_scores_come_in_whole_with_null_as_nan(tmp_path: Path) -> None:
    record = scores_record() | {
        "difference": {"scratch": {"ap": scores_record()["ap"], "froc": scores_record()["froc"]}}
    }
    scores = read_scores(write(tmp_path / "scores.json", record))
    assert scores.ap == Interval(0.5, 0.4, 0.6)
    assert np.isnan(scores.per_class["nodule"][0])
    assert scores.per_class["nodule"][1] == 7
    np.testing.assert_array_equal(scores.froc_curve.low, [0, 0.4, np.nan])
    assert scores.cases["a"].tp.tolist() == [True, False]
    assert scores.difference["scratch"][0].low == 0.4


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("schema", "girih-scores/2", "'girih-scores/2'"),
        ("iou", "0.1", "iou is '0.1'"),
        ("iou", None, "iou is None"),
        ("n_images", -1, "n_images is -1"),
        ("n_images", True, "n_images is True"),
        ("ap", {"value": 0.5, "low": 0.4}, "ap.high is missing"),
        ("ap", [0.5], "ap. is"),
        ("per_class", {"nodule": {"ap": "x", "n_objects": 1}}, "per_class.nodule.ap is 'x'"),
        ("froc_curve", {"fppi": [0], "sensitivity": [0, 1], "low": [0], "high": [0]}, "lengths"),
        ("froc_curve", {"fppi": "x", "sensitivity": [], "low": [], "high": []}, "froc_curve.fppi"),
        ("cases", {"a": {"tp": [1], "fp": [], "hit": []}}, "cases.a.tp is"),
        ("notes", [1], "notes is"),
    ],
)
def test_malformed_scores_name_file_and_field(tmp_path: Path, field: str, value: object, words: str) -> None:
    path = write(tmp_path / "scores.json", scores_record() | {field: value})
    with pytest.raises(ValueError, match=r"wanted|missing") as caught:
        read_scores(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"schema": ', '{"schema": "girih-scores/1", "iou": NaN}'])
def test_scores_that_are_no_object_name_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=str(path)):
        read_scores(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_scores(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "x"}, "schema"),
        ({"case_id": "b"}, "case_id is 'b'"),
        ({"boxes": [[1, 1, 1, 3, 3]]}, "boxes is"),
        ({"boxes": [[1, 1, 5, 3, 3, 3]]}, "boxes row 0"),
        ({"boxes": [[1, 1, 1, 3, 3, 3], [1]]}, "boxes is"),
        ({"scores": [0.5, 0.4]}, "scores is"),
        ({"scores": [1.5]}, "scores row 0 is 1.5, wanted 0 to 1"),
        ({"scores": [-0.1]}, "scores row 0 is -0.1, wanted 0 to 1"),
        ({"labels": [1]}, r"labels are \[1\]"),
        ({"affine": [[1, 0], [0, 1]]}, "affine is"),
        ({"boxes": [[float("nan")] * 6]}, "boxes is"),
    ],
)
def test_malformed_detections_name_file_and_field(tmp_path: Path, change: dict, words: str) -> None:
    path = write(tmp_path / "a.json", boxes_record() | change)
    with pytest.raises(ValueError, match=words) as caught:
        read_boxes(path, "detections")
    assert str(path) in str(caught.value)


def test_truth_has_ignore_flags_and_may_be_empty(tmp_path: Path) -> None:
    record = boxes_record() | {"ignore": [True]}
    del record["scores"]
    assert read_boxes(write(tmp_path / "a.json", record), "truth").ignore.tolist() == [True]
    assert read_boxes(write(tmp_path / "a.json", boxes_record()), "truth").ignore.tolist() == [False]
    empty = record | {"boxes": [], "labels": [], "ignore": []}
    assert read_boxes(write(tmp_path / "a.json", empty), "truth").boxes.shape == (0, 6)
    with pytest.raises(ValueError, match="ignore has 2"):
        read_boxes(write(tmp_path / "a.json", record | {"ignore": [True, False]}), "truth")


def test_curves_of_a_long_run_are_thinned_evenly(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "loss": {step}.5, "lr": 0.1}}\n' for step in range(1, 20_001)))
    curves = read_curves(path)
    assert len(curves["step"]) == 5000
    assert (curves["step"][0], curves["step"][-1]) == (1, 20_000)
    np.testing.assert_array_equal(curves["loss"], curves["step"] + 0.5)
    assert set(np.diff(curves["step"])) <= {3.0, 4.0, 5.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "empty"), ('{"step": 1, "loss": 2}\n', "line 1"), ('{"step": 1, "loss": 2, "lr": 0}\n{"st', "line 2")],
)
def test_a_broken_metrics_file_names_the_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_curves(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match="cannot be read"):
        read_curves(tmp_path / "absent.jsonl")


# ---- plots


def metrics_file(path: Path, steps: int) -> Path:
    path.write_text(
        "".join(json.dumps({"step": n + 1, "loss": 1 / (n + 1), "lr": 0.1, "part": 1.0}) + "\n" for n in range(steps))
    )
    return path


@pytest.mark.parametrize("steps", [1, 2, 300])
def test_progress_is_a_picture_and_nothing_is_left_behind(tmp_path: Path, steps: int) -> None:
    png = tmp_path / "progress.png"
    png.write_bytes(b"old")
    progress_png(metrics_file(tmp_path / "metrics.jsonl", steps), png)
    with Image.open(png) as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(2**24)) > 10
    assert {path.name for path in tmp_path.iterdir()} == {"progress.png", "metrics.jsonl"}


def test_progress_shows_validations_once_there_are_some(tmp_path: Path) -> None:
    metrics, table, png = metrics_file(tmp_path / "metrics.jsonl", 9), tmp_path / "validation.jsonl", tmp_path / "a.png"
    progress_png(metrics, png)
    without = png.read_bytes()
    for content, more in ((None, 0), ("", 0), ('{"step": 3, "ap": 0.25, "seconds": 1.0}\n', 100)):
        if content is not None:
            table.write_text(content)
        progress_png(metrics, png, table)
        with Image.open(png) as image, Image.open(io.BytesIO(without)) as old:
            assert image.height >= old.height + more
            assert (image.height == old.height) == (more == 0)
    table.write_text('{"step": 3}\n')
    with pytest.raises(ValueError, match=r"validation\.jsonl, line 1: found .* wanted numbers step and ap"):
        progress_png(metrics, png, table)


def test_progress_of_a_broken_run_keeps_the_old_picture(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{")
    (tmp_path / "progress.png").write_bytes(b"old")
    with pytest.raises(ValueError, match="line 1"):
        progress_png(tmp_path / "metrics.jsonl", tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes() == b"old"


def test_names_that_matplotlib_would_hide_or_typeset_are_drawn_as_they_are(tmp_path: Path) -> None:
    path = metrics_file(tmp_path / "metrics.jsonl", 3)
    plain, hostile = loss_png({"a": path, "b": path}), loss_png({"_a$x": path, "$\\frac{": path})
    assert plain != hostile  # drawn, and no error from the unbalanced formula


def test_froc_is_drawn_without_points_and_with_nan(tmp_path: Path) -> None:
    empty = FrocCurve(*(np.empty(0),) * 4)
    undefined = FrocCurve(np.array([0.0, 1.0]), *(np.full(2, np.nan),) * 3)
    assert froc_png({"a": empty, "b": undefined}).startswith(b"\x89PNG")


def test_sensitivity_is_linear_between_points_and_flat_beyond() -> None:
    curve = FrocCurve(np.array([0.0, 1.0, 3.0]), np.array([0.0, 0.5, 0.7]), np.zeros(3), np.ones(3))
    np.testing.assert_allclose(at_fppi(curve, np.array([0.0, 0.5, 2.0, 8.0])), [0, 0.25, 0.6, 0.7])


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.integers(1, 50))
def test_moving_average_equals_the_mean_of_the_window(values: list[float], width: int) -> None:
    array, half = np.array(values), min(width, len(values)) // 2
    expected = [array[max(0, i - half) : i + half + 1].mean() for i in range(len(array))]
    np.testing.assert_allclose(moving_average(array, width), expected, atol=1e-9)


# ---- wording


def test_summary_says_what_was_done_and_that_overlapping_intervals_leave_it_open() -> None:
    arms = {"scratch": the_scores(), "mae": the_scores(ap=Interval(0.44, 0.33, 0.55))}
    assert summary(arms, {"scratch": 200, "mae": 200}, 300) == (
        "An encoder was pre-trained for 300 steps; 2 detectors (“scratch” and “mae”) were trained for 200 steps each "
        "and scored on 24 images of 3 patients with 61 objects, where a prediction is a hit from an IoU of 0.1. AP was "
        "0.410 (95% interval 0.300 to 0.520) for “scratch” and 0.440 (95% interval 0.330 to 0.550) for “mae”; the "
        "intervals overlap, so these data do not tell the arms apart."
    )


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(-0.1, 0.2, "includes 0, so these data do not tell"), (0.01, 0.2, "excludes 0"), (np.nan, np.nan, "includes 0")],
)
def test_a_paired_difference_outranks_the_intervals(low: float, high: float, words: str) -> None:
    difference = {"scratch": (Interval(0.05, low, high), Interval(0.0, -1.0, 1.0))}
    said = summary({"scratch": the_scores(), "mae": the_scores(difference=difference)}, {"scratch": 1, "mae": 2}, None)
    assert words in said
    assert "1 step and 2 steps" in said


@pytest.mark.parametrize("low", [0.0, 0.6])
def test_no_wording_claims_a_benefit(low: float) -> None:
    far = the_scores(
        ap=Interval(0.9, low, 1.0), difference={"scratch": (Interval(0.5, low, 0.9), Interval(0.5, low, 0.9))}
    )
    for arms in (
        {"scratch": the_scores(), "mae": far},
        {"scratch": the_scores(), "mae": dataclasses.replace(far, difference={})},
    ):
        said = " ".join([summary(arms, {"scratch": 1, "mae": 1}, 5), *limits(arms)])
        assert not any(word in said for word in ("better", "improve", "benefit", "outperform", "superior", "help"))


def test_summary_of_one_arm_and_of_an_undefined_score() -> None:
    said = summary({"only": the_scores(n_images=1, ap=Interval(*[np.nan] * 3))}, {"only": 1}, None)
    assert said.startswith("1 detector (“only”) was trained for 1 step and scored on 1 image of 3 patients")
    assert said.endswith("AP was undefined for “only”.")


def test_some_of_three_arms_overlap() -> None:
    arms = {name: the_scores(ap=Interval(low, low, low + 0.1)) for name, low in (("a", 0.1), ("b", 0.15), ("c", 0.5))}
    assert "in 1 of 3 comparisons the intervals overlap" in summary(arms, dict.fromkeys(arms, 1), None)


def test_limits_warn_of_few_patients_and_name_shared_notes_once() -> None:
    arms = {"a": the_scores(notes=("same", "own")), "b": the_scores(notes=("same",))}
    said = limits(arms)
    assert "only 3 patients" in said[1]
    assert said[2:] == ["same", "a: own"]
    assert len(limits({"a": the_scores(n_patients=50)})) == 1


# ---- verdicts and slices


def judged(tp: list[bool], fp: list[bool], hit: list[bool], ignore: list[bool], tmp_path: Path) -> Judged:
    """Two objects at (1..3) and (5..7); three predictions: on the first, on the second, elsewhere."""
    record = boxes_record() | {"boxes": [[1, 1, 1, 3, 3, 3], [5, 5, 5, 7, 7, 7]], "labels": [0, 0], "ignore": ignore}
    truth = read_boxes(write(tmp_path / "a.json", record), "truth")
    record |= {"boxes": [*record["boxes"], [1, 5, 5, 2, 6, 6]], "labels": [0] * 3, "scores": [0.5, 0.9, 0.9]}
    predictions = read_boxes(write(tmp_path / "a.json", record), "detections")
    return Judged(predictions, truth, CaseScore(np.array(tp), np.array(fp), np.array(hit)))


def test_the_scores_say_what_a_prediction_is(tmp_path: Path) -> None:
    case = judged([True, False, False], [False, False, True], [True, False], [False, True], tmp_path)
    assert case.kinds() == ["tp", "neither", "fp"]
    assert case.true_kinds() == ["found", "ignored"]
    assert case.by_score() == [1, 2, 0]  # ties in file order


def test_a_place_is_hit_by_overlap_or_by_a_box_around_its_centre(tmp_path: Path) -> None:
    case = judged([False] * 3, [True] * 3, [False] * 2, [False] * 2, tmp_path)
    assert case.at(np.array([1.0, 1, 1, 3, 3, 3]), 0.1) == [0]
    around = np.array([0.0, 0, 0, 4.1, 4.1, 4.1])  # IoU 8 / 69, its centre lies in the first prediction
    assert case.at(around, 0.2) == []
    assert case.at(around, 0.2, centre=True) == [0]
    beside = np.array([2.5, 1, 1, 5, 3, 3])  # IoU 2 / 16, its centre lies in none
    assert case.at(beside, 0.12, centre=True) == [0]
    assert case.at(beside, 0.13, centre=True) == []


def test_window_is_lung_in_air_soft_tissue_elsewhere_and_percentiles_without_units() -> None:
    air, tissue = np.full((4, 4), -850.0), np.full((4, 4), 40.0)
    assert window_for(air, tissue, hounsfield=True) == LUNG
    assert window_for(tissue, air, hounsfield=True) == SOFT_TISSUE
    assert (LUNG.said, SOFT_TISSUE.said) == ("lung: W 1500 L -600", "soft tissue: W 400 L 40")
    ramp = window_for(tissue, np.arange(1001.0)[None], hounsfield=False)
    assert (ramp.low, ramp.high) == (5.0, 995.0)
    flat = window_for(air, tissue, hounsfield=False)
    assert flat.high > flat.low


@given(st.integers(1, 300), st.integers(1, 300), st.tuples(*[st.floats(-20, 320)] * 2), st.floats(0.1, 40))
def test_a_close_up_stays_inside_the_slice(rows: int, columns: int, corner: tuple[float, float], size: float) -> None:
    plane = Plane((rows, columns), (0.7, 2.0))
    y0, x0, y1, x1 = plane.around(np.array([0, *corner, 1, corner[0] + size, corner[1] + size]), 60.0)
    assert 0 <= y0 < y1 <= rows
    assert 0 <= x0 < x1 <= columns


def test_paper_is_turned_and_in_mm() -> None:  # 10 rows of 2 mm, 20 columns of 0.5 mm
    plane = Plane((10, 20), (2.0, 0.5))
    assert plane.on_paper(1, 4, 3, 8) == (6.0, 14.0, 8.0, 18.0)
    assert plane.on_paper(*plane.whole) == (0.0, 0.0, 10.0, 20.0)
