"""The presets against their rules, written out again in the plainest way."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from girih_metrics import PRESETS, bootstrap, evaluate, match, nndetection_compat, preset

PARTS = st.integers(0, 12).map(float)


def score(name, cases, classes=("a", "b"), **rules):
    chosen = preset(name).with_rules(**rules)
    return chosen.score(chosen.match(cases, classes=classes))


def test_golden_numbers_of_the_nndetection_evaluator(case_a):
    raw = nndetection_compat(case_a, classes=["a"])
    assert raw["AP_IoU_0.10_MaxDet_100"] == pytest.approx(0.299010, abs=5e-7)
    assert raw["AP_IoU_0.50_MaxDet_100"] == pytest.approx(0.168317, abs=5e-7)
    assert raw["mAP_IoU_0.10_0.50_0.05_MaxDet_100"] == pytest.approx(0.240924, abs=5e-7)
    assert raw["FROC_score_IoU_0.10"] == pytest.approx(0.476190, abs=5e-7)
    assert raw["FROC_score_IoU_0.50"] == pytest.approx(0.285714, abs=5e-7)
    absent = nndetection_compat(case_a, classes=["a", "gone"])
    assert absent["AP_IoU_0.10_MaxDet_100"] == pytest.approx(-0.35050, abs=5e-6)
    assert absent["gone_AP_IoU_0.10_MaxDet_100"] == -1
    assert absent["gone_froc_score"] == 0
    ours = score("nndetection", case_a, ["a", "gone"]).to_series()
    assert ours["AP@0.1"] == pytest.approx(0.299010, abs=5e-7)
    assert ours["mAP@0.1:0.5:0.05"] == pytest.approx(0.240924, abs=5e-7)
    assert ours["FROC@0.5"] == pytest.approx(0.285714, abs=5e-7)
    assert score("paper", case_a, ["a"]).values == pytest.approx([0.299010, 0.476190], abs=5e-7)


@pytest.mark.parametrize(("order", "ap"), [((0, 1), 1.0), ((1, 0), 0.5)])
def test_compat_depends_on_the_order_of_equal_scores(cube, make_case, order, ap):
    cases = [
        make_case("0", [(cube(0, 0, 0, 9), 0.5, 0)], [(cube(0, 0, 0, 9), 0)]),
        make_case("1", [(cube(0, 0, 0, 9), 0.5, 0)]),
    ]
    assert nndetection_compat([cases[i] for i in order], classes=["a"])["AP_IoU_0.10_MaxDet_100"] == ap


def test_compat_gives_nan_without_a_hit_and_cuts_at_100(cube, make_case):
    case = make_case(
        "0",
        [*[(cube(9 * i, 0, 0, 4), 0.9, 0) for i in range(1, 121)], (cube(0, 0, 0, 4), 0.1, 0)],
        [(cube(0, 0, 0, 4), 0)],
    )
    raw = nndetection_compat([case], classes=["a"])
    assert raw["AP_IoU_0.10_MaxDet_100"] == 0
    assert math.isnan(raw["FROC_score_IoU_0.10"])
    assert score("nndetection", [case], ["a"]).sel(metric="FROC@0.1").item() == 0


def test_compat_names_classes_and_their_mean(cube, make_case):
    box = cube(0, 0, 0, 10)
    raw = nndetection_compat(
        [make_case("0", [(box, 0.9, 1)], [(box, 0)]), make_case("1", [(box, 0.8, 1)], [(box, 1)])], classes=["a", "b"]
    )
    assert raw["AP_IoU_0.10_MaxDet_100"] == 0.25
    assert raw["FROC_score_IoU_0.10"] == pytest.approx(0.35714, abs=5e-6)
    assert raw["b_FROC_score_IoU_0.10"] == pytest.approx(0.71429, abs=5e-6)
    assert raw["mc_FROC_score_IoU_0.10"] == pytest.approx(0.71429 / 2, abs=5e-6)


def luna16_by_the_rules(cases, radius_of):
    """Sensitivity at the seven rates: every nodule's best mark, further and excluded hits dropped."""
    found, false, n_nodules = [], [], 0
    for case in cases:
        points = (case["pred_boxes"][:, :3] + case["pred_boxes"][:, 3:]) / 2
        centers = (case["gt_boxes"][:, :3] + case["gt_boxes"][:, 3:]) / 2
        used = set()
        for j, center in enumerate(centers):
            hits = [i for i, point in enumerate(points) if ((point - center) ** 2).sum() < radius_of(case, j) ** 2]
            used.update(hits)
            if not case["gt_ignore"][j]:
                n_nodules += 1
                if hits:
                    found.append(max(case["pred_scores"][i] for i in hits))
        false += [case["pred_scores"][i] for i in range(len(points)) if i not in used]
    if not n_nodules:
        return math.nan
    x, y = [0.0], [0.0]
    for cut in sorted({*found, *false}, reverse=True):
        x.append(sum(s >= cut for s in false) / len(cases))
        y.append(sum(s >= cut for s in found) / n_nodules)
    return np.mean(np.interp([0.125, 0.25, 0.5, 1, 2, 4, 8], x, y))


@given(st.data())
def test_luna16_and_pn9_by_the_rules(case_lists, data):
    cases = data.draw(case_lists(ignore=True))
    for case in cases:
        case["gt_diameters"] = np.full(len(case["gt_labels"]), 3.0)
    assert score("luna16", cases).item() == pytest.approx(luna16_by_the_rules(cases, lambda c, j: 1.5), nan_ok=True)
    expected = luna16_by_the_rules(cases, lambda c, j: max(c["gt_boxes"][j, 4:] - c["gt_boxes"][j, 1:3]) / 2)
    assert score("pn9", cases).item() == pytest.approx(expected, nan_ok=True)


def test_luna16_counts_marks_strictly_inside_and_drops_ties_at_the_cap(cube, make_case):
    edge = make_case("0", [(cube(0, 0, 5, 0), 0.9, 0)], [(cube(-5, -5, -5, 10), 0)], gt_diameters=np.array([10.0]))
    assert score("luna16", [edge]).item() == 0
    inside = edge | {"pred_boxes": np.array([[0, 0, 4.99, 0, 0, 4.99]])}
    assert score("luna16", [inside]).item() == 1
    crowd = make_case(
        "0", [(cube(0, 0, 0, 0), 0.5, 0), *[(cube(0, 0, 90, 0), 0.5, 0)] * 100], [(cube(-5, -5, -5, 10), 0)]
    )
    chosen = preset("luna16")
    assert len(chosen.match([crowd], classes=["a"]).pred_case) == 0
    scan = crowd | {
        "pred_points": np.zeros((101, 3)),
        "pred_masks": [((0, 0, 0), np.ones((1, 1, 1), dtype=bool))] * 101,
    }
    scan["pred_scores"] = np.linspace(1, 0, 101)
    assert len(chosen.match([scan], classes=["a"]).pred_case) == 100


def bar(start, stop):
    mask = np.zeros((1, 1, 20), dtype=bool)
    mask[..., start:stop] = True
    return ((0, 0, 0), mask), [0.0, 0.0, float(start), 1.0, 1.0, float(stop)]


def masked_case(make_case, case_id, preds, gts):
    found, real = [bar(*pred[:2]) for pred in preds], [bar(*gt) for gt in gts]
    return make_case(
        case_id,
        [(box, pred[2], 0) for (_, box), pred in zip(found, preds, strict=True)],
        [(box, 0) for _, box in real],
        pred_masks=[mask for mask, _ in found],
        gt_masks=[mask for mask, _ in real],
    )


def test_ribfrac_overlaps_connected_pieces(make_case):
    """Truth 0-4; one prediction 3-6 touches another at 6-10: the union piece is 0-10, the intersection 1 voxel."""
    alone = masked_case(make_case, "0", [(3, 6, 0.5)], [(0, 4)])
    touched = masked_case(make_case, "1", [(3, 6, 0.5), (6, 10, 0.4)], [(0, 4)])
    rules = {"criterion": "component_iou", "boundary": "exclusive"}
    assert match([alone], classes=["a"], iou=1 / 6 - 1e-9, **rules).found_by.tolist() == [[0]]
    assert match([alone], classes=["a"], iou=1 / 6, **rules).found_by.tolist() == [[-1]]
    assert match([touched], classes=["a"], iou=0.1 - 1e-9, **rules).found_by.tolist() == [[0]]
    assert match([touched], classes=["a"], iou=0.1, **rules).found_by.tolist() == [[-1]]


def test_ribfrac_gives_a_piece_to_the_pair_at_its_middle(make_case):
    """Both predictions lie in the truth and touch: one piece, 0-10, whose middle is in the second."""
    case = masked_case(make_case, "0", [(0, 2, 0.5), (2, 10, 0.4)], [(0, 10)])
    outcome = preset("ribfrac").match([case], classes=["a"]).outcome("0")
    assert (outcome["tp"].tolist(), outcome["fp"].tolist()) == ([1], [0])


def test_ribfrac_keeps_a_piece_that_bends_around_its_middle(make_case):
    """A ring of 8 voxels, 3 of one prediction and 5 of the other; the hole is its centroid."""
    ring = np.ones((1, 3, 3), dtype=bool)
    ring[0, 1, 1] = False
    top = np.zeros_like(ring)
    top[0, 0] = True
    box = [0.0, 0, 0, 1, 3, 3]
    case = make_case(
        "0",
        [(box, 0.5, 0), (box, 0.4, 0)],
        [(box, 0)],
        gt_masks=[((0, 0, 0), ring)],
        pred_masks=[((0, 0, 0), top), ((0, 0, 0), ring & ~top)],
    )
    assert preset("ribfrac").match([case], classes=["a"]).outcome("0")["tp"].tolist() == [1]


def test_ribfrac_curve_on_its_score_grid(make_case):
    """Two scans, two fractures; scores fall to hundredths, recall is 0 left of the first point."""
    hit, miss = (0, 4), (10, 14)
    cases = [
        masked_case(make_case, "0", [(*hit, 0.999), (*miss, 0.991)], [hit]),
        masked_case(make_case, "1", [(*hit, 0.355), (*miss, 0.351)], [hit]),
    ]
    # Points: at 0.99 (0.5 FP, recall 1/2); at 0.35 (1 FP, recall 1).
    assert score("ribfrac", cases).item() == pytest.approx(np.mean([0.5, 1, 1, 1, 1]))
    late = [masked_case(make_case, "0", [(*hit, 0.999), (*miss, 0.991)], [hit])]
    assert score("ribfrac", late).item() == pytest.approx(np.mean([0, 1, 1, 1, 1]))  # first point: 1 FP
    with pytest.raises(ValueError, match="case '0': pred_scores reach outside"):
        score("ribfrac", [masked_case(make_case, "0", [(*hit, 1.5)], [hit])])


def test_ribfrac_counts_further_hits_as_nothing(make_case):
    case = masked_case(make_case, "0", [(0, 3, 0.9), (5, 8, 0.8)], [(0, 8)])
    outcome = preset("ribfrac").match([case], classes=["a"]).outcome("0")
    assert (outcome["tp"].tolist(), outcome["ignored"].tolist()) == ([0], [1])


def test_picai_by_hand(make_case):
    """One lesion case with a hit at .8 under a false positive at .9, one clean case with a candidate at .5."""
    cases = [
        masked_case(make_case, "0", [(10, 14, 0.9), (0, 4, 0.8), (0, 2, 0.7)], [(0, 4)]),
        masked_case(make_case, "1", [(0, 4, 0.5)], []),
    ]
    found = score("picai", cases).to_series()
    assert found["AP"] == 0.5
    assert found["AUROC"] == 1
    assert found["score"] == 0.75


def test_adam_and_cada_by_hand(make_case, cube):
    ring = np.ones((1, 5, 5), dtype=bool)
    ring[0, 2, 2] = False
    points = np.array([[0.5, 2.5, 2.5], [0.5, 0.5, 0.5], [0.5, 1.5, 0.5], [30.0, 0, 0]])
    case = make_case(
        "0",
        [(cube(0, 0, 0, 1), 1.0, 0)] * 4,
        [([0, 0, 0, 1, 5, 5], 0), (cube(60, 0, 0, 2), 0)],
        pred_points=points,
        gt_masks=[((0, 0, 0), ring), ((60, 0, 0), np.ones((2, 2, 2), dtype=bool))],
    )
    cada = score("cada", [case], ["a"]).to_series()  # the hole is no hit; two points share one aneurysm
    assert cada["precision"] == pytest.approx(1 / 3)
    assert cada["recall"] == 0.5
    assert cada["F2"] == pytest.approx(5 * (1 / 3) * 0.5 / (4 / 3 + 0.5))
    adam = score("adam", [case], ["a"]).to_series()  # radius 2.5: centre and (1, 2) are in, the corner is not
    assert adam["sensitivity"] == 0.5
    assert adam["false positives per image"] == 2
    assert preset("adam").lower_is_better == {"false positives per image"}


def test_evaluate_gives_scores_with_intervals(case_a):
    result = evaluate(case_a, classes=["a", "gone"], draws=200)
    assert result["score"].sel(metric="mAP@0.1").item() == pytest.approx(0.299010, abs=5e-7)
    assert result["interval"].sizes == {"metric": 2, "bound": 2}
    assert result.attrs["absent"] == "gone"
    assert result.attrs["n_negative_images"] == 1
    bca = evaluate(case_a, classes=["a"], draws=200, interval="bca")
    assert (bca["interval"].sel(bound="lower") <= bca["score"]).all()
    assert "interval" not in evaluate(case_a, classes=["a"], draws=0)
    with pytest.raises(ValueError, match="protocol is 'coco'; wanted one of"):
        evaluate(case_a, classes=["a"], protocol="coco")
    with pytest.raises(ValueError, match="no cases"):
        evaluate([], classes=["a"])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_explains_itself_and_checks_its_cases(name, make_case):
    text = PRESETS[name].__doc__
    assert "Rule:" in text
    assert "Corrected:" in text or "Not included:" in text
    with pytest.raises(ValueError, match="case '0': pred_scores row 0 is nan"):
        preset(name).match([make_case("0", [([0, 0, 0, 1, 1, 1], np.nan, 0)])], classes=["a"])


@given(st.data())
def test_paper_is_nndetection_at_a_tenth(case_lists, data):
    cases = data.draw(case_lists(ignore=True))
    ours, theirs = score("paper", cases).to_series(), score("nndetection", cases).to_series()
    np.testing.assert_array_equal(ours["mAP@0.1"], theirs["AP@0.1"])
    np.testing.assert_array_equal(ours["FROC@0.1"], theirs["FROC@0.1"])


def test_paper_lets_an_ignored_object_take_one_prediction(cube, make_case):
    box = cube(0, 0, 0, 4)
    case = make_case(
        "0",
        [(box, 0.9, 0), (box, 0.8, 0), (cube(20, 0, 0, 4), 0.7, 0)],
        [(box, 0), (cube(20, 0, 0, 4), 0)],
        gt_ignore=np.array([True, False]),
    )
    assert score("paper", [case], ["a"]).sel(metric="mAP@0.1").item() == 0.5  # the second is a false positive


def test_adam_averages_the_sensitivity_of_scans(cube, make_case):
    one, far = cube(0, 0, 0, 4), [cube(20 * k, 0, 0, 4) for k in range(1, 4)]
    cases = [
        make_case("0", [(one, 1.0, 0)], [(one, 0)]),
        make_case("1", [(one, 1.0, 0)], [(box, 0) for box in (one, *far)]),
        make_case("2", [(one, 1.0, 0)]),
    ]
    found = score("adam", cases, ["a"]).to_series()
    assert found["sensitivity"] == (1 + 1 / 4) / 2  # pooled: 2 of 5
    assert found["false positives per image"] == pytest.approx(1 / 3)
    chosen = preset("adam")
    weighted = chosen.score(chosen.match(cases, classes=["a"]), np.array([[3, 1, 1], [0, 0, 2]]))
    assert weighted.sel(metric="sensitivity").values == pytest.approx([(3 + 1 / 4) / 4, np.nan], nan_ok=True)


@pytest.mark.usefixtures("plain_types")
def test_an_unknown_interval_is_refused(case_a):
    with pytest.raises(ValueError, match="interval is 'BCa'; wanted 'percentile' or 'bca'"):
        evaluate(case_a, classes=["a"], draws=5, interval="BCa")
    with pytest.raises(ValueError, match="interval is 'BCa'"):
        evaluate(case_a, classes=["a"], draws=0, interval="BCa")
    with pytest.raises(ValueError, match="interval is 'BCa'"):
        bootstrap(match(case_a, classes=["a"]), draws=5, interval="BCa")
