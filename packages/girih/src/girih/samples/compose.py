"""Find places for nodules and decoys in a scene, insert them, and say what went where."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from girih.samples.blend import DECOY_IN_AIR, NODULE_IN_AIR, Scene, draw_look, fits, insert
from girih.samples.lidc import Nodule
from girih.samples.shapes import nodule_shape, plaque_shape, pleura_starts, vessel_shape, vessel_starts
from girih_data3d import voxel_to_world

TRIES = 200
"""Places tried for one object. A nodule that fits nowhere is left out for the next; a decoy is left out."""


def insert_nodules(
    scene: Scene, candidates: Sequence[Nodule], count: int, rng: np.random.Generator
) -> list[tuple[Nodule, dict[str, Any]]]:
    """Insert `count` of the candidates, in their order, labelled 1, 2, ... in the scene's instances.

    Each is turned by a random rotation and shifted by a fraction of a voxel. The result pairs it with its record:
    `instance`, `position_ras_mm` (the middle of its own box), `diameter_mm`, `hu`, and what LIDC says of it.

    Raises:
        ValueError: fewer than `count` candidates find a place.
    """
    background = scene.background
    placed: list[tuple[Nodule, dict[str, Any]]] = []
    for nodule in candidates:
        if len(placed) == count:
            return placed
        look = draw_look(nodule, background.spacing_mm, rng)
        turn = Rotation.from_quat(rng.standard_normal(4))
        places = np.flatnonzero(scene.free & (background.depth_mm > nodule.diameter_mm / 4))
        for _ in range(TRIES if len(places) else 0):
            voxel = np.unravel_index(places[rng.integers(len(places))], scene.hu.shape)
            centre = np.array(voxel) + rng.uniform(-0.5, 0.5, 3)
            window, distance_mm = nodule_shape(nodule, centre, turn, background)
            if fits(scene, window, distance_mm, look, in_air=NODULE_IN_AIR):
                label = len(placed) + 1
                insert(scene, window, distance_mm, look, label=label, rng=rng)
                placed.append((nodule, _record(nodule, label, centre, look.hu, scene)))
                break
    if len(placed) < count:
        raise ValueError(f"{background.name}: found places for {len(placed)} nodules, wanted {count}; ask for fewer")
    return placed


def insert_decoys(scene: Scene, looks: Sequence[Nodule], count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Insert up to `count` unlabelled objects, by turns thickened vessels and pleural plaques.

    Their attenuation and edges are drawn as those of the nodules `looks`. Each record has `kind` and `position_ras_mm`.
    """
    background = scene.background
    kinds = (("vessel", vessel_starts(background), vessel_shape), ("plaque", pleura_starts(background), plaque_shape))
    placed = []
    for number in range(count):
        kind, starts, make = kinds[number % len(kinds)]
        look = draw_look(looks[int(rng.integers(len(looks)))], background.spacing_mm, rng)
        for _ in range(TRIES if len(starts) else 0):
            start = starts[rng.integers(len(starts))]
            shape = make(start, background, rng)
            if shape is None:
                continue
            window, distance_mm = shape
            in_lung_mm = np.maximum(distance_mm, -background.depth_mm[window])  # a plaque's root is in the wall
            if fits(scene, window, in_lung_mm, look, in_air=DECOY_IN_AIR):
                insert(scene, window, distance_mm, look, label=0, rng=rng)
                placed.append({"kind": kind, "position_ras_mm": _position(start, scene)})
                break
    return placed


def _record(nodule: Nodule, label: int, centre: np.ndarray, hu: float, scene: Scene) -> dict[str, Any]:
    return {
        "instance": label,
        "position_ras_mm": _position(centre, scene),
        "diameter_mm": round(nodule.diameter_mm, 3),
        "hu": round(hu, 1),
        "lidc_patient_id": nodule.patient_id,
        "lidc_scan": nodule.scan,
        "lidc_annotations": list(nodule.annotations),
        **{name: round(getattr(nodule, name), 3) for name in ("texture", "malignancy", "margin", "subtlety")},
    }


def _position(index_zyx: np.ndarray, scene: Scene) -> list[float]:
    (point,) = voxel_to_world(scene.background.affine, index_zyx[None])
    return [round(float(mm), 3) for mm in point]
