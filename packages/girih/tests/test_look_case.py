"""The pictures of a volume, and what `girih look` shows of a case: pairs, order, slices, windows, caps, titles."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from PIL import Image
from scipy.spatial.transform import Rotation

from girih.report.lettering import drawable, fitted
from girih.report.marks import WORST_FIRST, Mark
from girih.report.montage import case_figure
from girih.report.overlays import CaseView, view_case
from girih.report.plots import png_bytes
from girih.report.stack import MOST_SLICES, SLAB_SLICES, box_on_stack, make_stack
from girih.report.verdicts import Judged, judge
from girih.report.viewer import case_block
from girih.report.volumes import Volume, open_volumes
from girih_data3d import CaseSource, Dataset, PrepareSpec, prepare_many
from girih_metrics import match, read_cases

# ---- pictures of a volume


@pytest.mark.parametrize("seed", [359, 0, 1, 2])  # at 359 both axes of a slice run mostly to the front
@pytest.mark.parametrize("prepared", [False, True])
def test_right_is_left_and_front_is_up_however_a_scan_lies(seed: int, prepared: bool, tmp_path: Path) -> None:
    """Intensity grows to the patient's right, front or head: so must pixels to the left, the top, and pictures up."""
    turn = Rotation.random(random_state=seed).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.0, 1.5, 2.0])
    world = np.moveaxis(np.indices((24, 20, 16)), 0, -1) @ affine[:3, :3].T
    for axis in range(3):
        folder = tmp_path / str(axis)
        folder.mkdir()
        nibabel.save(nibabel.Nifti1Image((5 * world[..., axis]).astype(np.float32), affine), folder / "a.nii")
        data = folder
        if prepared:
            source = CaseSource("a", (folder / "a.nii",))
            data = folder / "store"
            spec = PrepareSpec(target_zyx_mm=(1.5,) * 3, crop=None)
            assert not prepare_many(Dataset("d", (), (source,)), data, spec).failed
        stack = make_stack(open_volumes(data)["a"](), 10**6)
        pixels = np.stack([decoded(picture) for picture in stack.pictures])
        towards = [pixels[::-1].mean((1, 2)), pixels.mean((0, 2)), pixels.mean((0, 1))]  # feet, back, left
        line = towards[2 - axis]
        assert np.polyfit(np.arange(len(line)), line, 1)[0] < 0


def flat(
    shape: tuple[int, int, int],
    values: Callable[[np.ndarray], np.ndarray],
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Volume:
    """A volume in RAS orientation whose intensity is a function of (z, y, x)."""
    affine = np.diag([*spacing[::-1], 1.0])

    def read(start: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
        at = np.meshgrid(*(np.arange(a, a + n) for a, n in zip(start, size, strict=True)), indexing="ij")
        return values(np.stack(at)).astype(np.float32)

    return Volume("v", shape, spacing, affine, shape, affine, 1, True, read)


def decoded(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("L")).astype(float)


def test_pictures_hold_the_intensities_of_the_scan() -> None:
    stack = make_stack(flat((40, 64, 48), lambda zyx: -190.0 + 8 * zyx[0] + zyx[1]), 10**6)
    grey, intensity = zip(*stack.codes, strict=True)
    assert stack.shape_zyx == (40, 64, 48)
    for z in (0, SLAB_SLICES - 1, SLAB_SLICES, 39):
        shown = np.interp(decoded(stack.pictures[z]), grey, intensity)
        wanted = -190.0 + 8 * z + np.arange(64)[::-1, None]  # row 0 is the patient's front, the last row of the array
        np.testing.assert_allclose(shown, np.broadcast_to(wanted, shown.shape), atol=13)  # three grey values
        assert abs(shown.mean() - wanted.mean()) < 4


def test_many_slices_and_pixels_are_averaged() -> None:
    n = 2 * MOST_SLICES + 1  # three slices a picture; the last one has fewer
    tall = make_stack(flat((n, 8, 8), lambda zyx: np.where(zyx[0] == 301, 1000.0, -1000.0), (0.5, 1.0, 1.0)), 10**6)
    assert (tall.merged_slices, tall.n_slices, tall.shape_zyx[0]) == (3, n, -(-n // 3))
    assert tall.step_zyx_mm == (1.5, 1.0, 1.0)
    assert int(np.argmax([decoded(picture).mean() for picture in tall.pictures])) == 301 // 3
    wide = make_stack(flat((3, 600, 1025), lambda zyx: 0.0 * zyx[0], (1.0, 0.7, 0.5)), 10**6)
    assert wide.shape_zyx == (3, 300, 342)
    assert wide.step_zyx_mm == (1.0, 1.4, 1.5)
    assert {decoded(picture).shape for picture in wide.pictures} == {(300, 342)}


@settings(deadline=None, max_examples=25)
@given(st.tuples(*[st.integers(1, 40)] * 3), st.integers(0, 2**32 - 1))
def test_a_voxel_lies_under_its_box(shape: tuple[int, int, int], seed: int) -> None:
    z, y, x = np.random.default_rng(seed).integers(0, shape)
    volume = flat(shape, lambda zyx: np.where(np.equal(zyx.T, (z, y, x)).all(-1).T, 900.0, -1200.0), (3.0, 0.5, 2.0))
    stack = make_stack(volume, 10**6)
    pixels = np.stack([decoded(picture) for picture in stack.pictures])
    box = box_on_stack(Mark("tp", np.array([z, y, x, z + 1, y + 1, x + 1.0]), "a", 1.0, int(z)), volume)
    brightest = np.array(np.unravel_index(pixels.argmax(), pixels.shape))[::-1]
    steps = np.array(stack.step_zyx_mm[::-1])
    np.testing.assert_allclose(box[:3], brightest * steps, atol=1e-9)
    np.testing.assert_allclose(box[3:], (brightest + 1) * steps, atol=1e-9)


def test_noise_fits_a_budget_by_smaller_pictures() -> None:
    rng = np.random.default_rng(0)
    noise = flat((20, 256, 200), lambda zyx: rng.normal(0.0, 300.0, zyx.shape[1:]))
    sizes = []
    for budget in (2_000_000, 300_000, 20_000):
        stack = make_stack(noise, budget)
        assert sum(map(len, stack.pictures)) <= budget
        np.testing.assert_allclose(np.multiply(stack.shape_zyx, stack.step_zyx_mm), (20, 256, 200), atol=6)
        sizes.append(stack.shape_zyx[1])
    assert sizes[0] == 256
    assert sizes[2] < 256
    with pytest.raises(ValueError, match="'v': its 20 pictures do not fit in 100 bytes"):
        make_stack(noise, 100)


def test_a_scan_without_a_unit_shows_its_own_range() -> None:
    scan = replace(flat((4, 30, 30), lambda zyx: 5.0 * zyx[2]), hounsfield=False)
    (window,) = make_stack(scan, 10**6).windows
    assert (window.low, window.high) == pytest.approx((0, 145), abs=1)
    constant = replace(flat((2, 3, 3), lambda zyx: 0.0 * zyx[2]), hounsfield=False)
    assert len(make_stack(constant, 10**6).pictures) == 2


# ---- what is shown of a case


def judged_case(folder: Path, true: list, arms: dict[str, list], **more: Any) -> dict[str, Judged]:
    """Write one case "v" of 20 x 40 x 40 voxels, boxes and scores of each arm, and read it back."""
    record = {"schema": "girih-detections/1", "case_id": "v", "classes": ["a"], "shape_zyx": [20, 40, 40]}
    record |= {"affine": np.eye(4).tolist(), "space": "source"} | more.pop("record", {})
    truth = {"boxes": true, "labels": [0] * len(true), "patient_id": "v"} | more
    files = {"truth": truth}
    for arm, found in arms.items():
        boxes, scores = zip(*found, strict=True) if found else ((), ())
        files[arm] = {"boxes": boxes, "scores": scores, "labels": [0] * len(found)}
    for name, content in files.items():
        (folder / name).mkdir()
        (folder / name / "v.json").write_text(json.dumps(record | content))
    return judge({arm: folder / arm for arm in arms}, folder / "truth", 0.1)["v"]


def lung_volume() -> Volume:
    return flat((20, 40, 40), lambda zyx: -850.0 + 0 * zyx[0])


def on_page(view: CaseView, start: float) -> dict[str, Any]:
    """The data of a case, as a browser would parse them."""
    block = case_block(view, 0, max_bytes=10**6, start=start)
    return json.loads(re.fullmatch("<script[^>]*>(.*)</script>", block, re.DOTALL)[1])


def test_one_prediction_is_credited_with_one_object(tmp_path: Path) -> None:
    """Box 0.9 overlaps both neighbours and finds the closer one; the other is found by its own box, at 0.3."""
    first, second = [5.0, 5, 5, 10, 15, 15], [5.0, 5, 15, 10, 15, 25]
    found = [([5.0, 5, 8, 10, 15, 25], 0.9), (first, 0.3)]
    (case,) = judged_case(tmp_path, [first, second], {"p": found}).values()
    assert case.finders == {0: 1, 1: 0}
    assert [case.found_at(row) for row in (0, 1)] == [0.3, 0.9]
    matches = match(read_cases(tmp_path / "p", tmp_path / "truth"), classes=["a"], iou=0.1, ignored="once")
    for score in (0.0, 0.29, 0.3, 0.31, 0.5, 0.9, 0.91, 1.0):
        told = {row for row in (0, 1) if case.found_at(row) >= score}
        assert told == set(matches.outcome("v", min_score=score)["found"].tolist())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_what_is_found_at_a_score_is_what_evaluate_finds_without_lower_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 6, (6, 3))
    true = np.concatenate([low, low + rng.integers(2, 5, (6, 3))], axis=1).astype(float)
    boxes = np.sort((true[rng.integers(0, 6, 9)] + rng.integers(-1, 2, (9, 6))).reshape(9, 2, 3), axis=1).reshape(9, 6)
    found = list(zip(boxes.tolist(), rng.integers(0, 11, 9) / 10, strict=True))
    with TemporaryDirectory() as folder:
        (case,) = judged_case(Path(folder), true.tolist(), {"p": found}, ignore=[False] * 4 + [True] * 2).values()
        (whole,) = read_cases(Path(folder) / "p", Path(folder) / "truth")
    for score in np.arange(0, 1.01, 0.1):
        kept = whole["pred_scores"] >= score
        names = ("pred_boxes", "pred_scores", "pred_labels")
        cut = match([whole | {name: whole[name][kept] for name in names}], classes=["a"], iou=0.1, ignored="once")
        told = [row for row in range(4) if (case.found_at(row) or -1.0) >= score or case.found_at(row) == score]
        assert told == cut.outcome("v")["found"].tolist()


def test_findings_are_in_one_order_and_on_one_slice(tmp_path: Path) -> None:
    """The prediction lies in two of six slices: both montage and page go where it can be seen with its object."""
    tall, missed, late = [4.0, 5, 5, 10, 15, 15], [0.0, 20, 20, 3, 26, 26], [12.0, 5, 20, 15, 15, 30]
    found = [([4.0, 5, 5, 6, 15, 15], 0.9), ([16.0, 30, 30, 18, 36, 36], 0.4), (late, 0.2)]
    arms = judged_case(tmp_path, [tall, missed, late], {"p": found})
    view = view_case(lung_volume(), arms, 0.1)
    wanted = [("Object 2, a", 1), ("False positive, a", 16), ("Object 3, a", 13), ("Object 1, a", 5)]
    assert [(finding.heading, finding.slice_index) for finding in view.findings] == wanted
    (marks,) = on_page(view, 0.0)["arms"]
    order = sorted((mark for mark in marks if mark["kind"] != "tp"), key=lambda mark: WORST_FIRST.index(mark["kind"]))
    assert [mark["slice"] for mark in order] == [1, 16, 13, 5]
    assert [mark["foundAt"] for mark in order] == [None, None, 0.2, 0.9]
    assert order[2]["below"] == "true object, missed at this score, found at 0.20: a"


def test_the_first_window_is_that_of_the_first_finding_at_the_first_score(tmp_path: Path) -> None:
    """The front is lung, the back tissue; the object in the back is found at 0.2, the false positive lies in front."""
    volume = flat((20, 40, 40), lambda zyx: np.where(zyx[1] < 20, 40.0, -850.0), (1.0, 3.0, 3.0))
    back, front = [5.0, 2, 10, 8, 8, 16], [5.0, 32, 10, 8, 38, 16]
    arms = judged_case(tmp_path, [back], {"p": [(front, 0.9), (back, 0.2)]}, record={"affine": volume.affine.tolist()})
    view = view_case(volume, arms, 0.1)
    at = {start: on_page(view, start) for start in (0.0, 0.2, 0.21)}
    assert [at[start]["windows"][at[start]["window"]][0].split(":")[0] for start in at] == [
        "lung",
        "lung",
        "soft tissue",
    ]


def test_many_objects_are_capped_and_counted(tmp_path: Path) -> None:
    true = [[float(z), 1, x, z + 1, 3, x + 2] for z in range(20) for x in (1, 5)]
    ignore = [row % 2 == 0 for row in range(40)]
    view = view_case(lung_volume(), judged_case(tmp_path, true, {"p": [], "q": []}, ignore=ignore), 0.1)
    assert (len(view.findings), len(view.ignored)) == (10, 10)
    assert view.left_out == "10 more true objects, 10 more unscored objects"
    assert "not shown: 10 more true objects" in case_figure(view).get_suptitle()


def test_montage_titles_stay_within_their_panels(tmp_path: Path) -> None:
    """Long names, names in letters that the font lacks, formulas; no warning, which would be an error."""
    names, evil = ("W" * 300, "$x_1$ \u75c5\u53d8 2\n"), "i" * 70 + " $\\frac{"
    boxes = [[1.0, 5, 5, 4, 15, 15], [10.0, 20, 20, 13, 30, 30]]
    arms = judged_case(tmp_path, boxes, {"p": [], "q": []}, labels=[0, 1], record={"classes": names})
    view = view_case(replace(lung_volume(), case_id="L" * 190), {evil: arms["p"], "L" * 200: arms["q"]}, 0.1)
    figure = case_figure(view)
    png_bytes(figure, 100)  # the figure's own, in which extents are told
    for axes in figure.axes:
        title, width = axes._left_title.get_window_extent(), axes.get_window_extent().width
        assert title.width <= width
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert {"R", "L", "A", "P"} <= texts
    assert any("lung: W 1500 L -600" in text for text in texts)
    assert any("$x_1$ \\u75c5\\u53d8 2\\u000a" in text for text in texts)
    (head,) = (text for text in figure.texts if text.get_text() == figure.get_suptitle())
    assert head.get_window_extent().width <= figure.bbox.width


@given(st.text(max_size=60), st.floats(0.3, 4), st.integers(1, 3))
def test_a_fitted_text_is_drawable_and_loses_nothing_that_fits(text: str, width_inch: float, lines: int) -> None:
    made = fitted(text, size=8.0, width_inch=width_inch, lines=lines)
    assert made.count("\n") < lines
    for line in made.split("\n"):
        wide, _, _ = text_to_path.get_text_width_height_descent(line, FontProperties(size=8.0), ismath=False)
        assert wide <= 72 * width_inch
    if not made.endswith("…"):
        assert "".join(made.split()) == "".join(drawable(text).split())
