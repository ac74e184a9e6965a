"""Speed and memory of girih_metrics: scoring once, the bootstrap against naive re-evaluation, the study's size.

    python benchmarks/metrics.py              # prints Markdown; takes a few minutes, most of it the study's size
    python benchmarks/metrics.py --quick      # a tenth of everything

The naive way to bootstrap is to write the drawn list of images, repeats under new names, and to evaluate it with the
same evaluator. Before anything is timed both ways must give the same numbers, bit for bit.
"""

import argparse
import platform
import resource
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np

from girih_metrics import (
    average_precision,
    bootstrap,
    froc,
    iou_range,
    match,
    preset,
    ranking,
    resample,
    score_methods,
)

# Table 1 of "The Missing Piece": test images, objects per image over the whole dataset, classes.
STUDY = {
    "D01": (85, 283 / 281, 1),
    "D02": (80, 4422 / 500, 1),
    "D03": (45, 826 / 300, 2),
    "D04": (155, 1884 / 1018, 2),
    "D05": (274, 911 / 911, 1),
    "D06": (89, 1186 / 888, 1),
    "D07": (2091, 40436 / 8798, 1),
    "D08": (152, 1590 / 1338, 1),
}


def simulate(images: int, predictions: int, classes: int, objects: float, seed: int) -> list[dict]:
    """Cases of a middling detector: four fifths of the objects hit roughly, the rest of the predictions astray."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(images)  # shared by all methods of a dataset
    cases = []
    for image in range(images):
        n = int(truth.poisson(objects))
        low = truth.uniform(0, 300, (n, 3))
        boxes, labels = np.hstack([low, low + truth.uniform(5, 30, (n, 3))]), truth.integers(0, classes, n)
        hit = np.flatnonzero(rng.random(n) < 0.8)[:predictions]
        near = boxes[hit] + rng.normal(0, 3, (len(hit), 6))
        near = np.hstack([np.minimum(near[:, :3], near[:, 3:]), np.maximum(near[:, :3], near[:, 3:])])
        away = predictions - len(hit)
        low = rng.uniform(0, 300, (away, 3))
        scores = np.append(rng.beta(3, 2, len(hit)), rng.beta(1.2, 6, away))
        cases.append(
            {
                "case_id": f"image{image}",
                "gt_boxes": boxes,
                "gt_labels": labels,
                "pred_boxes": np.vstack([near, np.hstack([low, low + rng.uniform(5, 30, (away, 3))])]),
                "pred_scores": scores.astype(np.float32).astype(float),
                "pred_labels": np.append(labels[hit], rng.integers(0, classes, away)),
            }
        )
    return cases


def drawn_list(cases: list[dict], times: np.ndarray) -> list[dict]:
    """The naive resample: every image as often as it was drawn."""
    return [
        case | {"case_id": f"{case['case_id']} {k}"} for case, n in zip(cases, times, strict=True) for k in range(n)
    ]


def evaluate_once(cases: list[dict], classes: list[str]) -> tuple[float, float]:
    matches = match(cases, classes=classes, iou=0.1)
    return average_precision(matches)["ap"].item(), froc(matches)["froc"].item()


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws and methods")
    quick = parser.parse_args().quick
    draws, methods = (100, 2) if quick else (1000, 20)
    versions = ", ".join(f"{name} {version(name)}" for name in ("girih-metrics", "numpy", "scipy", "xarray"))
    print(f"Python {platform.python_version()}, {versions}; {platform.machine()}, one process\n")

    classes = ["a", "b", "c"]
    cases = simulate(500, 100, 3, 6.0, seed=1)
    matches = match(cases, classes=classes, iou=0.1)
    weights = resample(matches.groups, draws=draws, seed=0)
    fast = bootstrap(matches, draws=draws, seed=0)
    for draw in range(3):  # the gate
        slow = evaluate_once(drawn_list(cases, weights[draw]), classes)
        if slow != (fast["ap"].values[draw, 0], fast["froc"].values[draw, 0]):
            raise SystemExit(f"draw {draw}: naive {slow} differs from the bootstrap; nothing is timed")
    over = iou_range(0.1, 0.5, 0.05)
    at_range = match(cases, classes=classes, iou=over)
    t_range = seconds(lambda: match(cases, classes=classes, iou=over))
    t_scores = seconds(lambda: (average_precision(at_range), froc(at_range)))
    t_match = seconds(lambda: match(cases, classes=classes, iou=0.1))
    t_boot = seconds(lambda: bootstrap(matches, draws=draws, seed=0))
    t_naive = seconds(lambda: evaluate_once(drawn_list(cases, weights[0]), classes))
    print("500 images x 100 predictions x 3 classes, 6 objects an image\n")
    print("| what | seconds |\n|---|---:|")
    print(f"| match at 9 IoU thresholds | {t_range:.2f} |")
    print(f"| AP over the range and FROC, from those matches | {t_scores:.2f} |")
    print(f"| match at IoU 0.1 | {t_match:.2f} |")
    print(f"| {draws} draws of AP@0.1 and FROC@0.1 | {t_boot:.2f} |")
    print(f"| one naive draw | {t_naive:.2f} |")
    print(f"\n{t_naive * draws / t_boot:.0f}x over naive re-evaluation ({draws} draws)", end="; ")
    print(f"{t_naive * draws / (t_boot + t_match):.0f}x with the one matching counted in\n")

    rules = preset("paper")
    t_matching, study = 0.0, {}
    for method in range(methods):
        study[f"method{method}"] = {}
        for name, (images, objects, n_classes) in STUDY.items():
            cases = simulate(images, 100, n_classes, objects, seed=method)
            start = time.perf_counter()
            study[f"method{method}"][name] = rules.match(cases, classes=[f"class{k}" for k in range(n_classes)])
            t_matching += time.perf_counter() - start
    start = time.perf_counter()
    scores = score_methods(study, protocol=rules, draws=draws)
    t_study = time.perf_counter() - start
    start = time.perf_counter()
    ranking(scores)
    t_ranks = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"The study's size: {methods} methods x 8 datasets x {draws} draws x {{AP, FROC}}, 100 predictions an image\n"
    )
    print("| what | seconds |\n|---|---:|")
    print(f"| matching, once | {t_matching:.1f} |")
    print(f"| all draws of all scores | {t_study:.1f} |")
    print(f"| ranks of all draws | {t_ranks:.1f} |")
    print(f"\npeak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
