"""The page of `girih look` in headless Chromium: what is drawn where, and what every control does."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from girih.report import look
from girih_metrics import match, read_cases

SHAPE_ZYX = (20, 50, 60)
SPACING_XYZ = (1.5, 1.2, 3.0)
FOUND, MISSED, WRONG = [5, 10, 12, 9, 18, 20], [11, 30, 38, 14, 37, 45], [15, 20, 25, 18, 28, 33]
"""A found and a missed object, and a false positive, in voxels; objects are bright, class names hostile."""
CLASS = '"><img src=x onerror=alert(1)>'
LUNG, OTHER, TISSUE = -850.0, -600.0, 40.0
"""Around the objects of the first and of the second case, and inside them; HU."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two CT scans, RAS on disk; in the first the object is found with 0.8, and a box with 0.4 is wrong."""
    folder = tmp_path_factory.mktemp("page")
    affine = np.diag([*SPACING_XYZ, 1.0])
    for name in ("scans", "truth", "p", "q"):
        (folder / name).mkdir()
    for number, case_id in enumerate(("first", "second")):
        scan = np.random.default_rng(number).normal((LUNG, OTHER)[number], 10.0, SHAPE_ZYX).astype(np.float32)
        for z0, y0, x0, z1, y1, x1 in (FOUND, MISSED):
            scan[z0:z1, y0:y1, x0:x1] = TISSUE
        nibabel.save(nibabel.Nifti1Image(scan.T, affine), folder / "scans" / f"{case_id}.nii")
        record = {"schema": "girih-detections/1", "case_id": case_id, "classes": [CLASS], "shape_zyx": SHAPE_ZYX}
        record |= {"affine": affine.tolist(), "space": "source", "boxes_ras_mm": []}
        truth = {"boxes": [FOUND, MISSED], "labels": [0, 0], "patient_id": case_id}
        (folder / "truth" / f"{case_id}.json").write_text(json.dumps(record | truth))
        for arm, (boxes, scores) in {"p": ([FOUND, WRONG], [0.8, 0.4]), "q": ([MISSED, FOUND], [0.7, 0.6])}.items():
            found = {"boxes": boxes, "scores": scores, "labels": [0, 0]}
            if number and arm == "p":
                found = {"boxes": [FOUND, MISSED], "scores": [0.9, 0.9], "labels": [0, 0]}
            (folder / arm / f"{case_id}.json").write_text(json.dumps(record | found))
    arms = {arm: folder / arm for arm in ("p", "q")}
    return look(folder / "out", predictions=arms, data=folder / "scans", truth=folder / "truth", modality="CT")


@pytest.fixture
def shown(page: Path, tab: Any) -> Any:
    """The page, freshly opened; at the end it must not have complained."""
    tab.show(page)
    yield tab
    assert tab.complaints == []


def slice_of(tab: Any, plane: str) -> str:
    return tab.run(f"document.querySelector('.{plane} output').textContent")


def boxes_of(tab: Any, plane: str = "axial") -> list[str]:
    drawn = f"[...document.querySelectorAll('.{plane} rect:not(.halo)')].map((rect) => rect.getAttribute('class'))"
    return sorted(tab.run(drawn))


def set_to(tab: Any, name: str, value: float | str, event: str = "input") -> None:
    control = f"document.querySelector('.viewer [name={name}]')"
    tab.run(f"{control}.value = {json.dumps(value)}; {control}.dispatchEvent(new Event('{event}'))")


def move_to(tab: Any, number: int) -> None:
    tab.run(
        f"""(() => {{
          const slider = document.querySelector('.axial input');
          slider.value = {number};
          slider.dispatchEvent(new Event('input'));
        }})()"""
    )


def middle(tab: Any, plane: str) -> tuple[float, float]:
    place = f"document.querySelector('.{plane} .picture').getBoundingClientRect()"
    x, y, width, height = tab.run(f"(({{x, y, width, height}}) => [x, y, width, height])({place})")
    return x + width / 2, y + height / 2


def grey_around(tab: Any, plane: str, kind: str) -> tuple[float, float]:
    """Grey values in the middle of a box, and a third of its sides beyond its corner."""
    return tab.run(
        f"""(() => {{
          const rect = document.querySelector('.{plane} rect.{kind}'), svg = rect.ownerSVGElement.viewBox.baseVal;
          const canvas = document.querySelector('.{plane} canvas'), copy = document.createElement('canvas');
          Object.assign(copy, {{ width: canvas.width, height: canvas.height }});
          const context = copy.getContext('2d', {{ willReadFrequently: true }});
          context.drawImage(canvas, 0, 0);
          const [x, y, w, h] = ['x', 'y', 'width', 'height'].map((name) => Number(rect.getAttribute(name)));
          const grey = (at, down) => context.getImageData(
            Math.round((at - svg.x) / svg.width * canvas.width),
            Math.round((down - svg.y) / svg.height * canvas.height), 1, 1).data[0];
          return [grey(x + w / 2, y + h / 2), grey(x - w / 3, y - h / 3)];
        }})()"""
    )


def test_it_opens_at_the_worst_finding_of_the_worst_case(shown: Any) -> None:
    assert shown.run("document.querySelector('[name=case]').selectedOptions[0].textContent").startswith("1. first: p:")
    assert shown.run("document.querySelector('.status').textContent") == f"1 of 3: true object, missed: {CLASS}"
    assert slice_of(shown, "axial") == "slice 13 of 20"  # the middle of 11 to 14, from 1
    assert boxes_of(shown) == ["missed"]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_object_lies_under_its_box_in_every_plane(shown: Any, plane: str) -> None:
    for zoom in (1, 3):
        set_to(shown, "zoom", zoom)
        inside, outside = grey_around(shown, plane, "missed")
        assert inside == pytest.approx(255 * (TISSUE + 1350) / 1500, abs=6)  # lung window
        assert outside == pytest.approx(255 * (LUNG + 1350) / 1500, abs=12)


def test_wheel_slider_and_keys_change_the_slice(shown: Any) -> None:
    x, y = middle(shown, "axial")
    shown.mouse("mouseWheel", x, y, deltaX=0, deltaY=300)  # down, to the feet
    shown.wait("document.querySelector('.axial output').textContent === 'slice 10 of 20'")
    assert boxes_of(shown) == []
    shown.mouse("mouseWheel", x, y, deltaX=0, deltaY=-30)  # less than a notch
    shown.mouse("mouseWheel", x, y, deltaX=0, deltaY=-30)
    assert slice_of(shown, "axial") == "slice 10 of 20"
    move_to(shown, 7)
    assert slice_of(shown, "axial") == "slice 7 of 20"
    assert boxes_of(shown) == ["found", "tp"]
    shown.run("document.querySelector('.axial input').focus()")
    shown.key("ArrowUp", 38)
    shown.wait("document.querySelector('.axial output').textContent === 'slice 8 of 20'")
    assert shown.run("document.querySelector('.axial input').ariaValueText") == "slice 8 of 20, boxes: 2"
    shown.key("Home", 36)
    shown.wait("document.querySelector('.axial output').textContent === 'slice 1 of 20'")


def test_a_click_moves_the_other_planes_and_gives_the_keys_to_the_slider(shown: Any) -> None:
    x, y = middle(shown, "axial")
    for kind in ("mousePressed", "mouseReleased"):
        shown.mouse(kind, x + 5, y + 5, button="left", clickCount=1)
    assert slice_of(shown, "sagittal") == "slice 31 of 60"
    assert slice_of(shown, "coronal") == "slice 26 of 50"
    assert shown.run("document.activeElement === document.querySelector('.axial input')")


def test_the_score_slider_hides_boxes_and_what_they_found(shown: Any) -> None:
    counts = "document.querySelector('.counts').textContent"
    move_to(shown, 7)
    assert shown.run(counts) == "At this score: found 1 of 2, false positives: 1"
    set_to(shown, "score", 0.5)
    assert shown.run(counts) == "At this score: found 1 of 2, false positives: 0"
    assert boxes_of(shown) == ["found", "tp"]
    set_to(shown, "score", 0.81)
    assert shown.run(counts) == "At this score: found 0 of 2, false positives: 0"
    assert boxes_of(shown) == ["missed"]
    assert slice_of(shown, "axial") == "slice 7 of 20"
    set_to(shown, "score", 0.8)
    assert boxes_of(shown) == ["found", "tp"]


def test_keys_and_buttons_go_from_finding_to_finding(shown: Any) -> None:
    status = "document.querySelector('.status').textContent"
    shown.run("document.querySelector('[name=next]').focus()")
    shown.key("n", 78)
    assert shown.run(status) == f"2 of 3: predicted, false positive: {CLASS}, score 0.40"
    assert slice_of(shown, "axial") == "slice 17 of 20"
    assert boxes_of(shown) == boxes_of(shown, "coronal") == ["fp"]
    shown.run("document.querySelector('[name=next]').click()")
    assert shown.run(status) == f"3 of 3: true object, found: {CLASS}, score 0.80"
    shown.key("n", 78)
    assert shown.run(status).startswith("1 of 3")
    shown.key("p", 80)
    assert shown.run(status).startswith("3 of 3")
    shown.run("document.querySelectorAll('.places ol button')[1].click()")
    assert shown.run(status).startswith("2 of 3")
    assert shown.run("document.querySelector('[aria-current]').textContent").endswith("score 0.40, slice 17")
    shown.key("b", 66)
    assert shown.run("getComputedStyle(document.querySelector('.axial .marks')).display") == "none"


def test_keys_work_on_a_fresh_page_and_with_caps_lock(shown: Any) -> None:
    assert shown.run("document.activeElement === document.body")
    for key, words in (("n", "2 of 3"), ("N", "3 of 3"), ("P", "2 of 3")):
        shown.key(key, ord(key.upper()))
        assert shown.run("document.querySelector('.status').textContent").startswith(words)
    shown.key("B", 66)
    assert not shown.run("document.querySelector('[name=boxes]').checked")


def test_objects_that_the_score_hides_say_so_after_those_never_found(shown: Any) -> None:
    listed = "[...document.querySelectorAll('.places ol button')].map((button) => button.textContent)"
    set_to(shown, "score", 0.85)
    assert shown.run(listed) == [
        f"true object, missed: {CLASS}, slice 13",
        f"true object, missed at this score, found at 0.80: {CLASS}, slice 7",
    ]
    set_to(shown, "arm", "1", "change")  # found at 0.7 and 0.6
    assert [words.split(":")[0][-4:] for words in shown.run(listed)] == ["0.60", "0.70"]


def test_a_box_tells_what_it_is_under_the_pointer(shown: Any) -> None:
    place = "document.querySelector('.axial rect.missed').getBoundingClientRect()"
    under = f"(({{x, y, width, height}}) => document.elementFromPoint(x + width / 2, y + height / 2))({place})"
    assert shown.run(f"{under}.parentNode.querySelector('title').textContent") == f"true object, missed: {CLASS}"
    computed = "getComputedStyle(document.querySelector('.axial rect.missed')).pointerEvents"
    assert shown.run(computed) == "all"  # which every browser knows, unlike bounding-box


def test_windows_change_the_greys(shown: Any) -> None:
    numbers = "[...document.querySelectorAll('.controls .number')].map((output) => output.textContent)"
    options = "[...document.querySelector('[name=window]').options].map((option) => option.textContent)"
    presets = ["lung: W 1500 L -600", "soft tissue: W 400 L 40", "bone: W 1800 L 400", "brain: W 80 L 40"]
    assert shown.run(options) == [*presets, "own"]
    for number, preset in reversed(list(enumerate(presets[:2]))):
        set_to(shown, "window", str(number), "change")
        level, width = shown.run(numbers)
        assert preset.endswith(f"W {width} L {level}")
    set_to(shown, "window", "1", "change")  # soft tissue
    inside, outside = grey_around(shown, "axial", "missed")
    assert (inside, outside) == (pytest.approx(128, abs=8), 0)
    set_to(shown, "width", 3000)
    level, width = shown.run(numbers)
    assert (level, float(width)) == ("40", pytest.approx(3000, abs=10))
    assert shown.run("document.querySelector('[name=width]').getAttribute('aria-valuetext')") == width
    assert shown.run("document.querySelector('[name=window]').selectedOptions[0].textContent") == "own"
    assert grey_around(shown, "axial", "missed")[1] > 30


def test_another_case_and_other_predictions(shown: Any) -> None:
    set_to(shown, "arm", "1", "change")
    counts = "document.querySelector('.counts').textContent"
    assert shown.run(counts) == "At this score: found 2 of 2, false positives: 0"
    set_to(shown, "case", "1", "change")
    shown.wait("document.querySelector('.viewer').getAttribute('aria-busy') === 'false'")
    set_to(shown, "arm", "0", "change")
    assert shown.run(counts) == "At this score: found 2 of 2, false positives: 0"
    assert shown.run("document.querySelector('.places ol').children.length") == 2


def test_a_late_picture_of_another_case_is_dropped(shown: Any) -> None:
    shown.run(
        """(() => {
          const images = HTMLImageElement.prototype, decode = images.decode;
          images.decode = function () { // the next one takes long
            images.decode = decode;
            return new Promise((done) => setTimeout(() => { window.late = true; done(decode.call(this)); }, 1000));
          };
        })()"""
    )
    set_to(shown, "case", "1", "change")  # begins with the slice through the object that is found
    set_to(shown, "case", "0", "change")
    shown.wait("document.querySelector('.viewer').getAttribute('aria-busy') === 'false'")
    assert not shown.run("window.late")
    shown.wait("window.late")
    shown.run("new Promise((done) => setTimeout(done, 200))")
    move_to(shown, 8)
    inside, outside = grey_around(shown, "axial", "found")
    assert inside == pytest.approx(255 * (TISSUE + 1350) / 1500, abs=6)
    assert outside == pytest.approx(255 * (LUNG + 1350) / 1500, abs=12)


def test_every_control_has_a_name(shown: Any) -> None:
    tree = shown.ask("Accessibility.getFullAXTree")["nodes"]
    controls = {"slider", "combobox", "checkbox", "button", "image"}
    named = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in tree
        if not node["ignored"] and node["role"]["value"] in controls
    ]
    assert [role for role, name in named if not name] == []
    assert {"slider", "combobox", "checkbox", "button", "image"} <= {role for role, _ in named}


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out(page: Path, tab: Any, width: int) -> None:
    tab.show(page, width, dark=True)
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    if width == 1280:
        assert (
            max(tab.run("[...document.querySelectorAll('.controls')].map((row) => row.clientHeight)")) < 40
        )  # one row
    ratio = tab.run("(({clientWidth: w, clientHeight: h}) => w / h)(document.querySelector('.coronal .picture'))")
    assert ratio == pytest.approx(60 * 1.5 / (20 * 3.0), rel=0.01)
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"


def test_at_a_score_the_page_says_what_evaluate_finds(tmp_path: Path, tab: Any) -> None:
    """Of two neighbours the box of 0.9 overlaps both; the first is found by its own box, of 0.3."""
    first, second = [5, 5, 5, 10, 15, 15], [5, 5, 15, 10, 15, 25]
    record = {"schema": "girih-detections/1", "case_id": "a", "classes": ["b"], "shape_zyx": [12, 30, 40]}
    record |= {"affine": np.eye(4).tolist()}
    found = {"boxes": [[5, 5, 8, 10, 15, 25], first, [0, 0, 0, 2, 4, 4]], "scores": [0.9, 0.3, 0.55], "labels": [0] * 3}
    truth = {"boxes": [first, second], "labels": [0, 0], "patient_id": "a"}
    for name, content in (("p", found), ("truth", truth)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.json").write_text(json.dumps(record | content))
    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 30, 12), np.float32), np.eye(4)), tmp_path / "a.nii")
    folders = {"predictions": {"p": tmp_path / "p"}, "truth": tmp_path / "truth"}
    tab.show(look(tmp_path / "out", data=tmp_path / "a.nii", **folders))
    matches = match(read_cases(tmp_path / "p", tmp_path / "truth"), classes=["b"], iou=0.1, ignored="once")
    for score in (0.0, 0.29, 0.3, 0.31, 0.55, 0.56, 0.9, 0.91, 1.0):
        set_to(tab, "score", score)
        wanted = matches.outcome("a", min_score=score)
        said = f"At this score: found {len(wanted['found'])} of 2, false positives: {len(wanted['fp'])}"
        assert tab.run("document.querySelector('.counts').textContent") == said


@pytest.mark.parametrize("turn", [np.diag([-1.0, -1.0, 1.0]), Rotation.random(random_state=359).as_matrix()])
def test_the_patient_right_is_on_the_left_of_the_page(turn: np.ndarray, tmp_path: Path, tab: Any) -> None:
    """The half of the scan to the patient's right and front is bright, in LPS files and in steep ones."""
    affine = np.eye(4)
    affine[:3, :3] = turn
    world = (np.moveaxis(np.indices((30, 30, 30)), 0, -1) - 14.5) @ turn.T
    nibabel.save(
        nibabel.Nifti1Image((world[..., 0] + world[..., 1] > 0).astype(np.float32), affine), tmp_path / "a.nii"
    )
    record = {"schema": "girih-detections/1", "case_id": "a", "classes": ["b"], "shape_zyx": [30, 30, 30]}
    record |= {"affine": affine.tolist(), "boxes": [], "scores": [], "labels": []}
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.json").write_text(json.dumps(record))
    tab.show(look(tmp_path / "out", predictions={"p": tmp_path / "p"}, data=tmp_path / "a.nii"))
    assert tab.run("[...document.querySelectorAll('.side')].map((side) => side.textContent).join('')") == "RLAPRLSIAPSI"
    for plane, brighter, darker in (("axial", (0.2, 0.2), (0.8, 0.8)), ("coronal", (0.1, 0.5), (0.9, 0.5))):
        assert grey_at(tab, plane, *brighter) > 200 > 50 > grey_at(tab, plane, *darker)


def grey_at(tab: Any, plane: str, across: float, down: float) -> int:
    """Grey value at a place of a picture, in parts of its sides."""
    return tab.run(
        f"""(() => {{
          const {{ width, height }} = document.querySelector('.{plane} canvas');
          const context = document.querySelector('.{plane} canvas').getContext('2d');
          return context.getImageData(Math.round({across} * width), Math.round({down} * height), 1, 1).data[0];
        }})()"""
    )


def test_a_damaged_picture_is_reported(page: Path, tab: Any, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(text.replace('"pictures":["', '"pictures":["AAAA'), encoding="utf-8")
    tab.show(tmp_path / "page.html")
    tab.wait("document.querySelector('.status').textContent.startsWith('A picture of this case cannot be shown')")


def test_one_slice_and_no_box(tmp_path: Path, tab: Any) -> None:
    nibabel.save(
        nibabel.Nifti1Image(np.arange(2000, dtype=np.float32).reshape(50, 40, 1), np.eye(4)), tmp_path / "a.nii"
    )
    record = {"schema": "girih-detections/1", "case_id": "a", "classes": ["b"], "shape_zyx": [1, 40, 50]}
    record |= {"affine": np.eye(4).tolist(), "boxes": [], "scores": [], "labels": []}
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.json").write_text(json.dumps(record))
    tab.show(look(tmp_path / "out", predictions={"p": tmp_path / "p"}, data=tmp_path / "a.nii"))
    assert [slice_of(tab, plane) for plane in ("axial", "coronal", "sagittal")] == [
        "slice 1 of 1",
        "slice 21 of 40",
        "slice 26 of 50",
    ]
    shown = "[...document.querySelectorAll('.coronal .side')].filter((side) => side.offsetHeight > 0)"
    assert tab.run(f"{shown}.map((side) => side.textContent)") == ["R", "L"]  # thin: no room above and below
    tab.run("document.querySelector('[name=next]').click(); document.querySelector('[name=previous]').click()")
    assert tab.run("document.querySelector('.status').textContent") == "places to look at: 0"
    assert tab.run("document.querySelector('[name=window]').options.length") == 2  # the whole range, and one's own
    assert tab.complaints == []
