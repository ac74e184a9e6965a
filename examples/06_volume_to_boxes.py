"""Find objects in a whole volume with two detectors, keep the raw candidates, and search how they are best merged."""

import numpy as np
import torch

import girih_metrics
from girih_detectors import RetinaUNet
from girih_detectors.inference import Merging, RawCase, collect, merge, sweep
from girih_detectors.testing import TinyPyramid, toy_batch

PATCH = (24, 24, 24)
CLASSES = ("dim", "bright")


def train(seed: int) -> RetinaUNet:
    """A detector of bright cuboids, trained for seconds; a real one has a pyramid of girih_backbones."""
    torch.manual_seed(seed)
    anchors = [[4, 4, 4], [6, 6, 6]]
    model = RetinaUNet(TinyPyramid(), classes=CLASSES, anchors_zyx=anchors, levels=(1, 2), head_channels=16)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimiser.zero_grad()
        model(*toy_batch(objects=(4, 2)))["loss"].backward()
        optimiser.step()
    return model


def scan(seed: int) -> tuple[np.ndarray, dict]:
    """A volume (1, z, y, x) with six cuboids, and what girih_metrics wants to know of them."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 0.1, (1, 56, 60, 64)).astype(np.float32)
    corners = np.array([[z, y, x] for z in (6, 36) for y in (8, 38) for x in (10, 44)])[rng.permutation(8)[:6]]
    labels = rng.integers(0, 2, 6)
    for (z, y, x), label in zip(corners, labels, strict=True):
        image[:, z : z + 6, y : y + 6, x : x + 6] += 1 + label
    truth = {"case_id": f"scan{seed}", "gt_labels": labels, "gt_boxes": np.hstack([corners, corners + 6.0])}
    return image, truth


def mean_ap(found: dict) -> float:
    """AP over IoU 0.1 to 0.5, as nnDetection sweeps by."""
    rows = [truths[name] | {f"pred_{key}": value for key, value in one.items()} for name, one in found.items()]
    matches = girih_metrics.match(rows, classes=CLASSES, iou=(0.1, 0.3, 0.5))
    return float(girih_metrics.average_precision(matches)["mean_ap"])


models = [train(seed) for seed in (0, 1)]
truths, cases = {}, {}
for seed in range(2):
    image, truths[f"scan{seed}"] = scan(seed)  # anything with .shape that gives tiles when sliced: a zarr store too
    raw = collect(models, image, patch_zyx=PATCH, batch_size=8)  # one set per model and mirroring: 16
    cases[f"scan{seed}"] = RawCase(shape_zyx=image.shape[1:], candidates=raw)
merged = {name: merge(case["candidates"], case["shape_zyx"], Merging()) for name, case in cases.items()}
result = sweep(cases, mean_ap)
print(f"{sum(len(one['scores']) for one in merged.values())} boxes, AP {mean_ap(merged):.3f} as nnDetection starts")
print(f"AP {result.score:.3f} on the same scans with {result.merging}")
