"""Score boxes of any detector: AP and FROC with bootstrap intervals. Boxes are (z0, y0, x0, z1, y1, x1), half-open."""

import numpy as np

import girih_metrics

rng = np.random.default_rng(0)
cases = []
for number in range(20):  # twenty scans with two lesions each; the detector finds most of them, and calls some noise
    corner = rng.uniform(0, 90, (2, 3))
    truth = np.hstack([corner, corner + 10])
    found = truth[rng.random(2) < 0.8] + rng.normal(0, 1, 6)
    noise = rng.uniform(0, 90, (rng.poisson(1.5), 3))
    boxes = np.vstack([found, np.hstack([noise, noise + 8])])
    scores = np.concatenate([rng.beta(5, 2, len(found)), rng.beta(2, 5, len(noise))])
    cases.append({
        "case_id": f"scan{number}", "gt_boxes": truth, "gt_labels": np.zeros(2, np.int64),
        "pred_boxes": boxes, "pred_scores": scores, "pred_labels": np.zeros(len(boxes), np.int64),
    })  # fmt: skip

matches = girih_metrics.match(cases, classes=("lesion",), iou=0.1)  # matched once; everything after is from this
scores = girih_metrics.bootstrap(matches, draws=1000, seed=0)
for name in ("ap", "froc"):
    low, high = scores[f"{name}_interval"].values.ravel()
    print(f"{name.upper():4} at IoU 0.1: {scores[f'{name}_point'].item():.3f} [{low:.3f}, {high:.3f}]")
for fppi, sensitivity in zip(girih_metrics.FPPI, scores["sensitivity_point"].values.ravel(), strict=True):
    print(f"  sensitivity at {fppi:5.3f} false positives a scan: {sensitivity:.3f}")
