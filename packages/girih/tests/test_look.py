"""`girih look` on prepared cases and on scans as they lie on disk: verdicts, pictures, the page and its safety."""

import base64
import hashlib
import html
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from girih.cli import main
from girih.commands.evaluate import evaluate
from girih.report import look
from girih.report.marks import OUTLINES, marks_of
from girih.report.verdicts import judge
from girih.report.volumes import open_volumes
from girih_data3d import CaseSource, Dataset, PrepareSpec, prepare_many

EVIL = "</script><script>alert(1)</script><!--"
CLASSES = ("nodule", EVIL)
CASES = ("a & 'b'", "b.[a]+")
SHAPE_XYZ = (60, 50, 16)
OBJECTS = {1: ((10, 18), (8, 18), (4, 8)), 2: ((40, 46), (30, 36), (9, 12)), 3: ((25, 35), (20, 26), (2, 5))}
"""Object -> half-open voxel ranges in the file's (x, y, z); 3 is real and not scored."""
ELSEWHERE = [12.0, 2.0, 2.0, 15.0, 8.0, 8.0]


@dataclass(frozen=True)
class Folders:
    """Scans and store of the same two cases, their truth, and predictions that find object 1 in case 0 alone."""

    scans: Path
    store: Path
    truth: Path
    predictions: Path

    def __getitem__(self, name: str) -> Path:
        return {"store": self.store, "scans": self.scans}[name]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Oblique files of 1 x 1.2 x 3 mm whose axes run left, back and up; the store has 2 mm."""
    folder = tmp_path_factory.mktemp("look")
    names = ("scans", "store", "truth", "predictions")
    made = Folders(*(folder / name for name in names))
    for path in (made.scans, made.truth, made.predictions):
        path.mkdir()
    turn = np.deg2rad(8.0)
    affine = np.eye(4)
    affine[:3, :3] = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    affine[:3, :3] = affine[:3, :3] @ np.diag([-1.0, -1.2, 3.0])
    affine[:3, 3] = (20.0, 30.0, -50.0)
    boxes = [[*(low for low, _ in spans[::-1]), *(high for _, high in spans[::-1])] for spans in OBJECTS.values()]
    sources = []
    for number, case_id in enumerate(CASES):
        scan = np.random.default_rng(number).normal(-850.0, 20.0, SHAPE_XYZ).astype(np.float32)
        labels = np.zeros(SHAPE_XYZ, np.uint8)
        for label, ranges in OBJECTS.items():
            place = tuple(slice(*span) for span in ranges)
            scan[place], labels[place] = 40.0, label
        image, instances = made.scans / f"{case_id}.nii", folder / f"{number}_labels.nii.gz"
        nibabel.save(nibabel.Nifti1Image(scan, affine), image)
        nibabel.save(nibabel.Nifti1Image(labels, affine), instances)
        classes = {1: 0, 2: 1, 3: 0}
        sources.append(
            CaseSource(case_id, (image,), instances=(instances,), instance_classes=classes, ignore=(3,), modality="CT")
        )
        record = {"schema": "girih-detections/1", "case_id": case_id, "classes": CLASSES, "space": "source"}
        record |= {"shape_zyx": SHAPE_XYZ[::-1], "affine": affine.tolist(), "boxes_ras_mm": []}
        truth = {"boxes": boxes, "labels": [0, 1, 0], "ignore": [False, False, True], "patient_id": f"p{number}"}
        (made.truth / f"{case_id}.json").write_text(json.dumps(record | truth))
        found = [boxes[0]] if number == 0 else []
        predicted = {"boxes": [*found, ELSEWHERE, boxes[2]], "scores": [0.9, 0.5, 0.3][1 - len(found) :]}
        predicted["labels"] = [0] * len(predicted["boxes"])
        (made.predictions / f"{case_id}.json").write_text(json.dumps(record | predicted))
    spec = PrepareSpec(target_zyx_mm=(2.0,) * 3, normalisation="ct", clip=(-1000, 400), mean=(-500,), std=(300,))
    assert not prepare_many(Dataset("tiny", CLASSES, tuple(sources)), made.store, spec).failed
    return made


@pytest.fixture(scope="module")
def page(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of raw scans with truth; what the file says of itself is nothing, so CT is told."""
    out = tmp_path_factory.mktemp("page")
    return look(out, predictions={"p": folders.predictions}, data=folders.scans, truth=folders.truth, modality="CT")


# ---- scans and verdicts


@pytest.mark.parametrize("data", ["store", "scans"])
def test_boxes_lie_on_their_objects_in_either_grid(folders: Folders, data: str) -> None:
    judged = judge({"": folders.predictions}, folders.truth, 0.1)
    for case_id, opened in open_volumes(folders[data], modality="CT").items():
        volume = opened()
        values = volume.read((0, 0, 0), volume.shape_zyx)
        assert volume.hounsfield
        assert np.median(values) == pytest.approx(-850, abs=10)
        for mark in marks_of(judged[case_id][""], volume)[:3]:
            z, y, x = (round(float(mark.box[axis] + mark.box[axis + 3]) / 2 - 0.5) for axis in range(3))
            assert values[z, y, x] > 0


def test_verdicts_are_those_of_evaluate(tmp_path: Path) -> None:
    """Random boxes, several on one object, two classes, ignored objects, more than the 100 that are scored."""
    rng = np.random.default_rng(3)
    for folder in ("truth", "p"):
        (tmp_path / folder).mkdir()
    for number in range(6):
        record = {"schema": "girih-detections/1", "case_id": f"c{number}", "classes": ["a", "b"], "boxes_ras_mm": []}
        record |= {"shape_zyx": [30, 30, 30], "affine": np.eye(4).tolist(), "space": "source"}
        low = rng.uniform(0, 20, (5, 3))
        true = np.concatenate([low, low + rng.uniform(3, 8, (5, 3))], axis=1)
        n = 130 if number == 0 else 12
        boxes = np.sort((true[rng.integers(0, 5, n)] + rng.normal(0, 1.5, (n, 6))).reshape(n, 2, 3), axis=1)
        truth = {"boxes": true.tolist(), "labels": [0, 1, 0, 1, 0], "ignore": [False] * 4 + [True], "patient_id": "p"}
        found = {"boxes": boxes.reshape(n, 6).tolist(), "labels": rng.integers(0, 2, n).tolist()}
        found["scores"] = rng.uniform(0, 1, n).round(2).tolist()
        (tmp_path / "truth" / f"c{number}.json").write_text(json.dumps(record | truth))
        (tmp_path / "p" / f"c{number}.json").write_text(json.dumps(record | found))
    wanted = evaluate({"p": tmp_path / "p"}, tmp_path / "truth", iou=0.2, draws=2)["p"]["cases"]
    assert sum(sum(case["fp"]) for case in wanted.values()) > 5
    for case_id, arms in judge({"p": tmp_path / "p"}, tmp_path / "truth", 0.2).items():
        score = arms["p"].score
        assert {name: getattr(score, name).tolist() for name in ("tp", "fp", "hit")} == wanted[case_id]


# ---- files


def test_one_montage_a_case_worst_first_and_none_left_over(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "montages").mkdir()
    for name in (f"0001_{CASES[0]}.png", "0012_other.png", "0001.png", "notes.txt"):
        (tmp_path / "montages" / name).write_text("old")
    look(tmp_path, predictions={"p": folders.predictions}, data=folders.store, truth=folders.truth)
    names = sorted(path.name for path in (tmp_path / "montages").iterdir())
    assert names == sorted([f"0001_{CASES[1]}.png", f"0002_{CASES[0]}.png", "0001.png", "notes.txt"])
    with Image.open(tmp_path / "montages" / f"0001_{CASES[1]}.png") as image:
        colours = {f"#{r:02X}{g:02X}{b:02X}" for n, (r, g, b) in image.convert("RGB").getcolors(2**24) if n > 20}
    assert {OUTLINES[kind][0] for kind in ("missed", "fp", "ignored")} <= colours
    assert OUTLINES["tp"][0] not in colours


def data_of(text: str) -> list[dict[str, Any]]:
    """The data blocks of the cases, as a browser would parse them."""
    return [json.loads(block) for block in re.findall(r'id="viewer-case-\d+">(.*?)</script>', text, re.DOTALL)]


def test_the_page_runs_one_script_and_loads_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    assert len(scripts[0].splitlines()) <= 250
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.split("; ") == [
        "default-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]
    assert EVIL not in text  # as a class it stands in the data, escaped
    assert any(EVIL in mark["said"] for case in data_of(text) for mark in case["arms"][0])
    for case_id in CASES:
        assert html.escape(case_id) in text


def test_the_page_says_what_became_of_every_box(page: Path) -> None:
    worst, other = data_of(page.read_text(encoding="utf-8"))
    assert [mark["kind"] for mark in worst["arms"][0]] == ["missed", "missed", "ignored", "fp", "neither"]
    assert [mark["kind"] for mark in other["arms"][0]] == ["missed", "found", "ignored", "tp", "fp", "neither"]
    assert [mark["foundAt"] for mark in other["arms"][0]] == [None, 0.9, None, None, None, None]
    assert "2 cases, 4 true objects; a prediction is a hit from an IoU of 0.1." in page.read_text()


def test_some_cases_have_no_truth_and_some_no_predictions(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders.predictions, tmp_path / "p")
    shutil.copytree(folders.truth, tmp_path / "truth")
    (tmp_path / "truth" / f"{CASES[0]}.json").rename(tmp_path / "truth" / "other.json")
    text = look(tmp_path, predictions={"p": tmp_path / "p"}, data=folders.store, truth=tmp_path / "truth").read_text()
    assert "2 cases, 2 true objects; a prediction is a hit from an IoU of 0.1. 1 case without truth." in text
    assert "1 case with truth and without predictions: other." in text
    judged, unjudged = ({mark["kind"] for mark in case["arms"][0]} for case in data_of(text))
    assert judged == {"missed", "ignored", "fp", "neither"}
    assert unjudged == {"prediction"}
    assert all(meaning in legend_of(text) for _, _, meaning in OUTLINES.values())
    text = look(tmp_path, predictions={"p": tmp_path / "p"}, data=folders.store).read_text()
    assert [meaning for _, _, meaning in OUTLINES.values() if meaning in legend_of(text)] == [OUTLINES["prediction"][2]]


def legend_of(text: str) -> str:
    return re.search('<ul class="legend">.*?</ul>', text)[0]


def test_the_worst_cases_within_their_budget(folders: Folders, tmp_path: Path) -> None:
    def size(case_bytes: int) -> int:
        out = tmp_path / str(case_bytes)
        page = look(out, predictions={"p": folders.predictions}, data=folders.scans, worst=1, case_bytes=case_bytes)
        (block,) = re.findall(r'id="viewer-case-0">.*?</script>', page.read_text(), re.DOTALL)
        assert len(block) <= case_bytes
        assert "Slices are shown of the first 1 of 2 cases." in page.read_text()
        return len(block)

    assert size(8_000) < size(1_000_000)


# ---- bad input


def test_what_does_not_belong_together_is_refused(folders: Folders, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folders.predictions, moved)
    path = moved / f"{CASES[1]}.json"
    record = json.loads(path.read_text())

    def refused(words: str, **changes: Any) -> None:
        given = {"predictions": {"p": folders.predictions}, "data": folders.store}
        with pytest.raises(ValueError, match=words):
            look(tmp_path / "out", **(given | changes))
        assert not (tmp_path / "out" / "report.html").exists()

    refused("no cases", predictions={"p": tmp_path / "absent"})
    refused("absent: no such file", data=tmp_path / "absent")
    refused("predictions is empty", predictions={})
    refused("worst is 0", worst=0)
    refused("iou is 0", iou=0.0)
    refused("absent: has the truth of none of 2 cases", truth=tmp_path / "absent")
    refused("its 24 pictures do not fit in", case_bytes=3800)
    refused(r"its 3 boxes take \d+ of 1,000 bytes, which leaves no room for pictures", case_bytes=1000)
    path.write_text(json.dumps(record | {"classes": ["nodule"], "labels": [0, 0]}))
    refused("classes is", predictions={"p": moved}, truth=folders.truth)
    path.write_text(json.dumps(record | {"affine": np.eye(4).tolist()}))
    refused(r"case 'b\.\[a\]\+': the boxes are of a scan of shape", predictions={"p": moved})
    refused("the boxes are of a scan of shape", predictions={"p": moved}, data=folders.scans)
    path.write_text(json.dumps(record | {"case_id": "c"}))
    path.rename(moved / "c.json")
    refused("has no case 'c'; 1 of 2", predictions={"p": moved})
    refused("different cases, for example", predictions={"p": folders.predictions, "q": moved})


def test_the_command(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = tmp_path / "q"
    shutil.copytree(folders.predictions, second)
    where = ["--data", str(folders.store), "--truth", str(folders.truth), "--out", str(tmp_path / "out")]
    assert main(["look", "--predictions", str(folders.predictions), str(second), *where]) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert "Predicted boxes: predictions, q" in text
    assert '<select name="arm"><option value="0">predictions</option><option value="1">q</option></select>' in text
    for size in ("0.0", "inf", "nan"):
        assert main(["look", "--predictions", str(second), *where, "--case-megabytes", size]) == 2
        assert f"case_megabytes is {size}" in capsys.readouterr().err
    three = [str(second), str(folders.predictions), str(second)]
    for command in (["look", *where], ["evaluate", "--truth", str(folders.truth)]):
        assert main([*command, "--predictions", *three]) == 2
        assert "found more than once: ['q']" in capsys.readouterr().err


def test_scans_with_a_folder_named_cases_and_a_second_channel_are_scans(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    for case_id in CASES:
        shutil.copy(folders.scans / f"{case_id}.nii", tmp_path / "cases")
    listed = [{"case_id": case_id, "images": [f"cases/{case_id}.nii"]} for case_id in CASES]
    manifest = {"schema": 1, "name": "d", "classes": [], "modality": "ct", "cases": listed}

    def shown() -> str:
        (tmp_path / "dataset.json").write_text(json.dumps(manifest))
        return look(tmp_path / "out", predictions={"p": folders.predictions}, data=tmp_path).read_text()

    assert {case["windows"][0][0] for case in data_of(shown())} == {"lung: W 1500 L -600"}
    assert "Of scans with several channels the first is shown." not in shown()
    shutil.copy(folders.scans / f"{CASES[0]}.nii", tmp_path / "cases" / "second.nii")
    listed[0]["images"].append("cases/second.nii")
    assert "Of scans with several channels the first is shown." in shown()


def test_without_truth_nothing_is_called_wrong(folders: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    record = json.loads((folders.predictions / f"{CASES[0]}.json").read_text())
    record |= {name: record[name][:1] for name in ("boxes", "scores", "labels")}
    (folder / f"{CASES[0]}.json").write_text(json.dumps(record))
    text = look(tmp_path / "out", predictions={"p": folder}, data=folders.scans).read_text()
    said = re.sub("<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL)
    assert "1 box, best score 0.90" in said
    assert "Highest score first." in said
    assert not re.search("1 boxes|worst|false positive|true object|found", said, re.IGNORECASE)
