"""Detections as `girih predict` makes them, for the tests of what is written of them, loaded by path."""

import itertools
import json
from pathlib import Path

import numpy as np
import SimpleITK

from girih_detectors.inference import restore

SHAPE = (20, 24, 28)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def rotation(degrees_xyz: tuple[float, float, float]) -> np.ndarray:
    turned = np.eye(3)
    for axis, degrees in enumerate(degrees_xyz):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        one = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        one[a, a], one[a, b], one[b, a], one[b, b] = c, -s, s, c
        turned = one @ turned
    return turned


def oblique(degrees=(20.0, -35.0, 50.0), spacing_xyz=(0.7, 1.1, 2.5), origin=(-30.0, 40.0, 5.0), turn=None):
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) @ (np.eye(3) if turn is None else turn) * np.array(spacing_xyz)
    affine[:3, 3] = origin
    return affine


def detections(boxes, scores, *, labels=None, affine=None, case_id="case", classes=("nodule", "cyst"), **more) -> dict:
    """Made as `girih predict` makes them: by `restore`, here from a volume that is the source itself."""
    affine = oblique() if affine is None else affine
    prepared = {"source_affine": affine, "affine": affine, "source_shape_zyx": SHAPE}
    found = {
        "boxes": np.array(boxes, np.float32).reshape(-1, 6),
        "scores": np.array(scores, np.float32),
        "labels": np.zeros(len(scores), np.int64) if labels is None else np.array(labels, np.int64),
    }
    return restore(found, prepared, case_id=case_id, classes=classes) | more


TWO = detections([[2, 3, 4, 8, 9, 11], [1.5, 10.25, 20, 5, 12, 30.5]], [0.9, 0.25], labels=[1, 0])


def strict_json(path: Path):
    def refuse(word: str) -> None:
        raise ValueError(f"{path}: {word}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def itk_corners_lps(image: SimpleITK.Image, box) -> np.ndarray:
    edges = itertools.product((box[2], box[5]), (box[1], box[4]), (box[0], box[3]))
    return np.array([image.TransformContinuousIndexToPhysicalPoint([e - 0.5 for e in corner]) for corner in edges])
