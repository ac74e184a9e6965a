"""A detector scored on whole scans while it trains; the training goes on as if nobody had looked."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

import girih_data3d
from girih.air import not_air
from girih.batches import survey
from girih.ensembles import preparation_differences
from girih.inference import FAST_OVERLAP, tiles_at_once
from girih.runs import RunFolder
from girih.scoring import read_truths, score_of
from girih_detectors import Detections, Detector, detect_volume

IOU = 0.1
"""Overlap of a hit: the study's, and the one that nnDetection judges failed starts by."""
PADDING = -1


def split_cases(
    store: girih_data3d.Store, *, validation: Path | None, split: Path | None, fold: int | None
) -> tuple[girih_data3d.Store, girih_data3d.Store | None]:
    """Return the cases to train on and those to validate on, if there are any: another dataset's, or a fold's.

    Raises:
        ValueError: both or half of a way are asked for, the split cannot be read or does not fit the dataset, or the
            two differ in preparation, classes or channels, share a case, or leave nothing to validate on.
    """
    if (split is None) != (fold is None):
        raise ValueError(f"split is {split} and fold is {fold}, wanted both (the first fold is 0) or neither")
    if split is not None and validation is not None:
        raise ValueError(f"validation is {validation}, wanted none with --split, whose fold says what validates")
    if split is not None and fold is not None:
        divided = girih_data3d.read_split(split)
        divided.check(store)
        parts = divided.parts(fold)
        if not parts["val"]:
            raise ValueError(f"{split}: fold {fold} has no cases in 'val' to validate on")
        return store.select(parts["train"]), store.select(parts["val"])
    if validation is None:
        return store, None
    other = girih_data3d.Store.open(validation)
    for field, found, wanted in preparation_differences(other.spec, store.spec):
        raise ValueError(f"{validation} was prepared with {field} {found!r}, the training data with {wanted!r}")
    channels = survey(other).in_channels, survey(store).in_channels
    if channels[0] != channels[1]:
        raise ValueError(f"{validation} has {channels[0]} channels, the training data have {channels[1]}")
    girih_data3d.check_no_leak(store, other, allow_unknown=True)
    return store, other


class Validation:
    """Finds objects in cases as `girih predict --fast` does, and scores them as `girih evaluate` does, at IoU 0.1.

    The cases are dealt over the processes, which all have to call.

    Args:
        store: the cases.
        classes: of the detector.
        patch_zyx: tile, voxels.
        folder: has the row of each validation in validation.jsonl.
        accelerator: of the training.

    Raises:
        ValueError: other classes, a case that is not labelled, or no object to find in any of them.
    """

    def __init__(
        self,
        store: girih_data3d.Store,
        classes: tuple[str, ...],
        patch_zyx: tuple[int, int, int],
        folder: RunFolder,
        accelerator: Accelerator,
    ) -> None:
        self._store, self._patch_zyx, self._folder, self._accelerator = store, patch_zyx, folder, accelerator
        self._score = score_of(store, read_truths(store, classes), IOU)

    def __call__(self, detector: Detector, step: int) -> None:
        """Score a detector, and write down its AP; weights, modes and random state stay as they are.

        Raises:
            ValueError: a case cannot be read, or what the detector finds is not finite.
        """
        accelerator, began = self._accelerator, time.monotonic()
        rows = [self._find(detector, number) for number in self._share()]
        mine = torch.cat([torch.zeros(0, 9, dtype=torch.float64), *rows]).to(accelerator.device)
        padded = accelerator.pad_across_processes(mine, dim=0, pad_index=PADDING)
        everything: Tensor = accelerator.gather(padded)
        if accelerator.is_main_process:
            ap, seconds = self._score(self._by_case(everything.cpu().numpy())), time.monotonic() - began
            self._folder.log_validation({"step": step, "ap": ap, "seconds": round(seconds, 3)})
            line = f"validation at step {step}: AP {ap:.3f} in {len(self._store)} cases ({seconds:.0f} s)"
            accelerator.print(line, file=sys.stderr)
            accelerator.log({"validation_ap": ap}, step=step)
        accelerator.wait_for_everyone()

    def _share(self) -> list[int]:
        """Return the rows of this process's cases: the largest ones are dealt first, so that shares are even."""
        voxels = self._store.index.shapes.prod(axis=1)
        order: list[int] = np.argsort(-voxels, kind="stable").tolist()
        return order[self._accelerator.process_index :: self._accelerator.num_processes]

    def _find(self, detector: Detector, number: int) -> Tensor:
        """Return rows (number of the case, score, label, box) in float64, which holds all of them exactly."""
        image = self._store[self._store.case_ids[number]].lazy()
        devices = [self._accelerator.device] if self._accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self._accelerator.autocast():
            found = detect_volume(
                detector,
                image,
                patch_zyx=self._patch_zyx,
                overlap=FAST_OVERLAP,
                mirror=False,
                batch_size=tiles_at_once(self._patch_zyx),
                valid=not_air(image),
            )
        boxes, scores, labels = (torch.as_tensor(found[key]).double() for key in ("boxes", "scores", "labels"))
        return torch.cat([torch.full((len(boxes), 1), float(number)), scores[:, None], labels[:, None], boxes], dim=1)

    def _by_case(self, rows: np.ndarray) -> dict[str, Detections]:
        found = {}
        for number, case_id in enumerate(self._store.case_ids):
            mine = rows[rows[:, 0] == number]
            found[case_id] = Detections(
                boxes=mine[:, 3:].astype(np.float32),
                scores=mine[:, 1].astype(np.float32),
                labels=mine[:, 2].astype(np.int64),
            )
        return found
