"""The report and the montage on a small real dataset: what is drawn where, what the page says, and that it is safe."""

import base64
import hashlib
import json
import re
import shutil
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from girih.report import Arm, reconstruction_png, write_report
from girih.report.files import read_scores
from girih.report.gallery import card
from girih.report.marks import OUTLINES
from girih.report.overlays import CaseView, view_cases
from girih.report.slices import LUNG, grey, plane_of, read_region
from girih.report.verdicts import read_judged
from girih.report.volumes import volume_of
from girih_data3d import CaseSource, Dataset, PrepareSpec, Store, prepare_many

EVIL = "<script>alert(1)</script>"
TITLE = f'{EVIL} & "title"'
CASES = ("a & 'b'", "c; &lt;i")
ARMS = ('scratch "<b>', "mae' onload=alert(1) <svg/onload=alert(1)>")
CLASSES = ("nodule", f"{EVIL}")
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE_XYZ = (60, 50, 20)
OBJECTS = {1: ((10, 18), (20, 30), (5, 9)), 2: ((40, 46), (12, 18), (10, 14)), 3: ((25, 35), (30, 40), (3, 7))}
"""Object -> half-open voxel ranges in the file's (x, y, z); 3 is real and not scored."""


@dataclass(frozen=True)
class Experiment:
    folder: Path
    arms: dict[str, Arm]

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def truth(self) -> Path:
        return self.folder / "truth"

    def write(self, path: Path, **changes: object) -> str:
        settings = {
            "title": TITLE,
            "arms": self.arms,
            "truth": self.truth,
            "store": self.store,
            "pretraining": self.folder / "pre.jsonl",
            "notes": [f"a note {EVIL}"],
            "facts": {"command": "girih demo", f"{EVIL}": "http://example.org/ <b>"},
        }
        write_report(path, **(settings | changes))
        return path.read_text(encoding="utf-8")

    def views(self) -> list[CaseView]:
        scores = {name: (arm.predictions, read_scores(arm.scores)) for name, arm in self.arms.items()}
        return list(view_cases(read_judged(scores, self.truth), self.store, 0.1))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Two CT cases of 1 x 1.5 x 2.5 mm in LPS files, prepared at 2 mm; bright boxes in lung; two arms."""
    folder = tmp_path_factory.mktemp("experiment")
    affine = LPS @ np.diag([1.0, 1.5, 2.5, 1.0])
    affine[:3, 3] = (70.0, -20.0, 33.0)
    sources = []
    for number, case_id in enumerate(CASES):
        scan = np.random.default_rng(number).normal(-850.0, 30.0, SHAPE_XYZ).astype(np.float32)
        labels = np.zeros(SHAPE_XYZ, np.uint8)
        for label, ranges in OBJECTS.items():
            place = tuple(slice(*span) for span in ranges)
            scan[place], labels[place] = 40.0, label
        image, instances = folder / f"{number}.nii.gz", folder / f"{number}_labels.nii.gz"
        nibabel.save(nibabel.Nifti1Image(scan, affine), image)
        nibabel.save(nibabel.Nifti1Image(labels, affine), instances)
        source = CaseSource(
            case_id,
            (image,),
            instances=(instances,),
            instance_classes={1: 0, 2: 1, 3: 0},
            ignore=(3,),
            patient_id=f"p{number}",
            modality="CT",
        )
        sources.append(source)
    report = prepare_many(
        Dataset("tiny", CLASSES, tuple(sources)),
        folder / "store",
        PrepareSpec(target_zyx_mm=(2.0, 2.0, 2.0), normalisation="ct", clip=(-1000, 400), mean=(-500,), std=(300,)),
    )
    assert not report.failed
    (folder / "truth").mkdir()
    for case_id, case in ((case_id, Store.open(folder / "store")[case_id]) for case_id in CASES):
        (folder / "truth" / f"{case_id}.json").write_text(json.dumps(case.truth))
    arms = {name: _arm(folder, name, number) for number, name in enumerate(ARMS)}
    for file in ("pre", "0", "1"):
        rows = [{"step": step, "loss": 1.0 / step, "lr": 0.01, "seconds": step} for step in range(1, 21)]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Experiment(folder, arms)


@pytest.fixture(scope="module")
def report(experiment: Experiment) -> Path:
    """The page of the whole experiment."""
    experiment.write(experiment.folder / "report.html")
    return experiment.folder / "report.html"


def _arm(folder: Path, name: str, number: int) -> Arm:
    """Arm 0 finds object 1 in both cases; arm 1 finds both objects in the first case and none in the second."""
    predictions, cases = folder / f"predictions{number}", {}
    predictions.mkdir()
    for n, case_id in enumerate(CASES):
        record = json.loads((folder / "truth" / f"{case_id}.json").read_text())
        first, second, ignored = record.pop("boxes")
        record.pop("ignore")
        elsewhere = [15.0, 2.0, 2.0, 18.0, 8.0, 8.0]
        found = {(0, 0): [first], (0, 1): [first], (1, 0): [first, second], (1, 1): []}[number, n]
        boxes = [*found, elsewhere] + ([ignored] if number == 0 else [])
        record |= {"boxes": boxes, "scores": [0.9 - 0.1 * row for row in range(len(boxes))]}
        record["labels"] = [CLASSES.index(EVIL) if box is second else 0 for box in boxes]
        (predictions / f"{case_id}.json").write_text(json.dumps(record))
        hit = [first in found, second in found, False]
        tp = [box in found for box in boxes]
        cases[case_id] = {"tp": tp, "fp": [box is elsewhere for box in boxes], "hit": hit}
    low, high = 0.1, 0.7
    scores = {
        "schema": "girih-scores/1",
        "iou": 0.1,
        "n_images": 2,
        "n_patients": 2,
        "n_objects": 4,
        "draws": 100,
        "confidence": 0.95,
        "ap": {"value": 0.4321 + number / 10, "low": low, "high": high},
        "froc": {"value": 0.3217, "low": low, "high": high},
        "per_class": {"nodule": {"ap": 0.7771, "n_objects": 2}, EVIL: {"ap": None, "n_objects": 2}},
        "froc_curve": {"fppi": [0, 0.5, 1], "sensitivity": [0, 0.5, 0.5], "low": [0, 0.2, 0.2], "high": [0, 0.7, 0.7]},
        "cases": cases,
        "notes": [f"class {EVIL} is rare"],
    }
    path = folder / f"scores{number}.json"
    path.write_text(json.dumps(scores))
    return Arm(path, predictions, folder / f"{number}.jsonl")


PROSE = {"title", "section", "h1", "h2", "h3", "p", "b", "ul", "li", "div", "span", "label", "input", "body", "main"}
TABLES = {"table", "caption", "thead", "tbody", "tr", "th", "td"}
PICTURES = {"figure", "figcaption", "img", "svg", "g", "rect", "image", "use", "text"}
VIEWER = {"script", "noscript", "canvas", "select", "option", "output", "button", "ol"}
TAGS = PROSE | TABLES | PICTURES | VIEWER | {"html", "head", "meta", "style"}


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data


# ---- what is drawn where


def test_boxes_land_on_their_voxels_in_the_prepared_grid(experiment: Experiment) -> None:
    """The file is LPS and anisotropic, the store RAS at 2 mm: a wrong route would be off by far more than a voxel."""
    for view in experiment.views():
        bright = read_volume(view) > -400.0  # half way between lung and object
        for mark in view.marks[ARMS[0]][:3]:
            around = tuple(slice(int(a) - 2, int(b) + 3) for a, b in zip(mark.box[:3], mark.box[3:], strict=True))
            seen = np.argwhere(bright[around]) + [part.start for part in around]
            np.testing.assert_allclose(mark.box, [*seen.min(axis=0), *(seen.max(axis=0) + 1)], atol=0.8)
            bright[around] = False
        assert not bright.any()


def read_volume(view: CaseView) -> np.ndarray:
    return np.stack([read_region(view.volume, z, view.plane.whole) for z in range(view.n_slices)])


def test_the_true_object_lies_under_its_box_on_paper(experiment: Experiment) -> None:
    """Turning the pixels and turning the box must be the same turn: the picture is bright inside, dark outside."""
    view = next(view for view in experiment.views() if view.case_id == CASES[0])
    finding = next(finding for finding in view.findings if finding.heading.startswith("Object 1,"))
    pixels = grey(read_region(view.volume, finding.slice_index, view.plane.whole), LUNG)
    mark = next(mark for mark in view.marks[ARMS[0]] if mark.kind == "found")
    _, y0, x0, _, y1, x1 = (float(edge) for edge in mark.box)
    left, top, right, bottom = (round(mm / 2.0) for mm in view.plane.on_paper(y0, x0, y1, x1))
    assert pixels[top + 1 : bottom - 1, left + 1 : right - 1].min() > 200
    assert pixels[max(0, top - 4) : top - 1, left:right].max() < 150


def test_paper_is_radiological(experiment: Experiment) -> None:
    case = Store.open(experiment.store)[CASES[0]]
    plane = plane_of(volume_of(case))
    ras = np.linalg.inv(case.affine) @ [*(case.affine[:3, 3] + [10.0, 0.0, 0.0]), 1.0]  # 10 mm to the patient's right
    assert plane.on_paper(0.0, ras[0], 1.0, ras[0] + 1)[0] < plane.on_paper(0.0, 0.0, 1.0, 1.0)[0]


def test_findings_are_the_misses_then_false_positives_then_the_hits(experiment: Experiment) -> None:
    worst, other = experiment.views()
    assert (worst.case_id, other.case_id) == (CASES[1], CASES[0])  # three misses, one miss
    assert [finding.heading for finding in worst.findings] == [
        f"Object 2, {EVIL}",
        "Object 1, nodule",
        "False positive, nodule",
    ]
    assert worst.findings[0].remarks == {ARMS[0]: "missed", ARMS[1]: "missed"}
    assert [finding.heading for finding in other.findings] == [
        f"Object 2, {EVIL}",
        "False positive, nodule",
        "Object 1, nodule",
    ]
    assert other.findings[2].remarks == {ARMS[0]: "found, score 0.90", ARMS[1]: "found, score 0.90"}
    assert worst.findings[2].remarks == {
        arm: f"false positive, score 0.{digit}0" for arm, digit in zip(ARMS, "89", strict=True)
    }
    assert worst.remarks[ARMS[1]] == "found 0 of 2 at any score, highest false positive 0.90"
    kinds = [mark.kind for mark in other.marks[ARMS[0]]]
    assert kinds == ["missed", "found", "ignored", "tp", "fp", "neither"]


def test_the_lesion_that_is_not_scored_is_hit_by_one_arm(experiment: Experiment) -> None:
    (finding,) = experiment.views()[0].ignored
    assert finding.remarks == {
        ARMS[0]: "hit, score 0.70 (rank 3 of 3 boxes in this scan), IoU 1.00",
        ARMS[1]: "miss, no box here",
    }


def test_every_finding_shows_its_object_on_its_slice(experiment: Experiment) -> None:
    for view in experiment.views():
        for finding in (*view.findings, *view.ignored):
            for arm, remark in finding.remarks.items():
                drawn = {mark.kind for mark in view.drawn(arm, finding)}
                if remark.startswith("found"):
                    assert {"found", "tp"} <= drawn
                if remark == "missed":
                    assert "missed" in drawn


# ---- the page


def test_page_is_self_contained_and_escapes_everything(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= TAGS
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "xlink:href", "srcset", "action", "data"):
            if name in attributes:
                assert re.match(r"data:image/png;base64,|#p\d+$", attributes[name]), (tag, attributes[name][:60])
        assert "url(" not in attributes.get("style", "")
    for said in (TITLE, *CASES, *ARMS, EVIL, "http://example.org/ <b>", f"a note {EVIL}", f"class {EVIL} is rare"):
        assert said in page.text
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'")
    data = [attributes for tag, attributes in page.tags if tag == "script" and attributes]
    assert {attributes["type"] for attributes in data} == {"application/json"}
    assert len(data) == 1 + len(CASES)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {attributes["href"] for tag, attributes in page.tags if tag == "use"}
    assert used <= {f"#{name}" for name in ids}


def test_page_says_the_numbers_in_order(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    headings = ["Scores", "Loss", "FROC", "Slices", "Overlays", "Real lesions", "Limits and notes", "Facts"]
    assert re.findall("<h2>(.*?)</h2>", text) == headings
    for number in ("0.432 [0.100, 0.700]", "0.532 [0.100, 0.700]", "0.322 [0.100, 0.700]", "0.777", "undefined"):
        assert number in page.text
    assert "the intervals overlap, so these data do not tell the arms apart" in page.text
    assert "only 2 patients" in page.text
    for colour, _, meaning in (outline for kind, outline in OUTLINES.items() if kind != "prediction"):
        assert colour in text
        assert meaning in page.text
    drawn = {attributes.get("class") for tag, attributes in page.tags if tag == "rect"}
    assert {"tp", "fp", "missed", "found", "ignored", "neither"} <= drawn
    assert "stroke-dasharray" in re.search(r"\.missed\{([^}]*)\}", text)[1]


def test_paired_differences_are_tabled(experiment: Experiment, tmp_path: Path) -> None:
    first, second = ARMS
    record = json.loads(experiment.arms[second].scores.read_text())
    record["difference"] = {first: {end: {"value": 0.05, "low": -0.125, "high": 0.25} for end in ("ap", "froc")}}
    (tmp_path / "scores.json").write_text(json.dumps(record))
    arms = experiment.arms | {second: replace(experiment.arms[second], scores=tmp_path / "scores.json")}
    page = Page(experiment.write(tmp_path / "report.html", arms=arms))
    assert f"{second} minus {first}0.050 [-0.125, 0.250]yes" in page.text
    assert "the interval of the paired difference includes 0" in page.text


def test_page_of_one_arm_without_pretraining_notes_and_facts(experiment: Experiment, tmp_path: Path) -> None:
    one = {ARMS[0]: experiment.arms[ARMS[0]]}
    page = Page(experiment.write(tmp_path / "report.html", arms=one, pretraining=None, notes=[], facts={}))
    assert "1 detector" in page.text
    assert "pre-trained" not in page.text


def test_a_reconstruction_is_shown_where_there_is_one(experiment: Experiment, report: Path, tmp_path: Path) -> None:
    png = tmp_path / "reconstruction.png"
    patches = np.random.default_rng(0).normal(size=(2, 1, 4, 6, 8)).astype(np.float32)
    reconstruction_png({"input": patches, "shown": 0 * patches, "output": patches}, png)
    page = Page(experiment.write(tmp_path / "report.html", reconstruction=png))
    assert "What pre-training restores" in page.text
    assert len(figures(page)) == len(figures(Page(report.read_text()))) + 1
    assert "What pre-training restores" not in Page(report.read_text()).text
    with pytest.raises(ValueError, match=r"absent\.png: cannot be read"):
        experiment.write(tmp_path / "report.html", reconstruction=tmp_path / "absent.png")


@pytest.mark.parametrize("bad", [1, 24 * 8])
def test_a_reconstruction_that_is_not_finite_is_drawn(bad: int, tmp_path: Path) -> None:
    patches = np.linspace(0, 1, 24 * 8, dtype=np.float32).reshape(1, 1, 4, 6, 8)
    patches.flat[-bad:] = np.nan
    reconstruction_png({"input": patches, "output": patches + np.inf}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def figures(page: Page) -> list[str]:
    return [tag for tag, _ in page.tags if tag == "figure"]


def test_the_same_input_gives_the_same_page(experiment: Experiment, report: Path, tmp_path: Path) -> None:
    assert experiment.write(tmp_path / "again.html") == report.read_text(encoding="utf-8")


def test_a_hostile_case_id_is_escaped_in_a_card(experiment: Experiment) -> None:
    view = replace(experiment.views()[0], case_id='"><img src=x onerror=alert(1)>')
    page = Page(card(view, view.findings[0], 1, with_case_id=True))
    assert [tag for tag, _ in page.tags if tag == "img"] == []
    assert view.case_id in page.text


# ---- bad input


def test_nothing_is_written_when_an_input_is_bad(experiment: Experiment, tmp_path: Path) -> None:
    first = ARMS[0]
    scores = json.loads(experiment.arms[first].scores.read_text())
    absent = tmp_path / "absent"

    def refused(words: str, **changes: object) -> None:
        path = tmp_path / "report.html"
        path.write_text("old")
        with pytest.raises(ValueError, match=words):
            experiment.write(path, **changes)
        assert path.read_text() == "old"
        assert not [other for other in tmp_path.iterdir() if other.name.endswith(".partial")]

    def arm(**changes: object) -> dict[str, Arm]:
        return experiment.arms | {first: replace(experiment.arms[first], **changes)}

    def with_scores(change: dict) -> dict[str, Arm]:
        path = tmp_path / "scores.json"
        path.write_text(json.dumps(scores | change))
        return arm(scores=path)

    refused("arms is empty", arms={})
    refused("absent: cannot be read", arms=arm(scores=absent))
    refused("absent: cannot be read", pretraining=absent)
    refused("absent: cannot be read", arms=arm(training=absent))
    refused("absent/a & 'b'.json: cannot be read", arms=arm(predictions=absent))
    refused("absent/a & 'b'.json: cannot be read", truth=absent)
    refused(r"scores\.json: n_images is 'x'", arms=with_scores({"n_images": "x"}))
    refused("iou is", arms=with_scores({"iou": 0.5}))
    refused("different cases, for example", arms=with_scores({"cases": {CASES[0]: scores["cases"][CASES[0]]}}))
    few = {case: {"tp": [], "fp": [], "hit": entry["hit"]} for case, entry in scores["cases"].items()}
    refused(
        r"tp is \[\] in the scores, but \[True, False, False\] when matched again", arms=with_scores({"cases": few})
    )
    refused("no cases", arms={first: with_scores({"cases": {}})[first]})
    refused("absent: no such file or folder", store=absent)


def test_a_case_that_the_store_lacks_is_named(experiment: Experiment, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(experiment.store, store)
    shutil.rmtree(Store.open(store)[CASES[0]].folder)
    with pytest.raises(ValueError, match=re.escape(f"has no case {CASES[0]!r}")):
        experiment.write(tmp_path / "report.html", store=store)


def test_predictions_on_another_grid_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions"
    shutil.copytree(experiment.arms[ARMS[0]].predictions, predictions)
    path = predictions / f"{CASES[0]}.json"
    record = json.loads(path.read_text())
    record["affine"][0][3] += 1.0
    path.write_text(json.dumps(record))
    arms = {ARMS[0]: replace(experiment.arms[ARMS[0]], predictions=predictions)}
    with pytest.raises(ValueError, match="affine is"):
        experiment.write(tmp_path / "report.html", arms=arms)


# ---- in a browser


def colours(path: Path) -> set[str]:
    with Image.open(path) as image:
        counted = image.convert("RGB").getcolors(2**24)
    return {f"#{r:02X}{g:02X}{b:02X}" for n, (r, g, b) in counted if n > 20}


@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_shows_the_page_without_complaint(report: Path, tmp_path: Path, width: int, tab: Any) -> None:
    tab.show(report, width)
    tab.photograph(tmp_path / "page.png")
    assert tab.complaints == []
    assert tab.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert {OUTLINES[kind][0] for kind in ("tp", "fp", "missed", "ignored")} <= colours(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    shade = pixels[(np.ptp(pixels, axis=-1) == 0) & (abs(pixels[..., 0] - 85) < 15)]  # lung in a lung window
    assert len(shade) > 20_000


def test_the_browser_check_can_fail(report: Path, tmp_path: Path, tab: Any) -> None:
    evil = '<img src="https://example.org/x.png"><script>alert(1)</script></main>'
    (tmp_path / "page.html").write_text(report.read_text(encoding="utf-8").replace("</main>", evil), encoding="utf-8")
    tab.show(tmp_path / "page.html")
    assert len(tab.complaints) >= 2
