"""From a fingerprint to a plan, on any computer: no network is built, nothing is measured on a GPU."""

import math
from typing import Literal

import numpy as np

from girih_data3d.fingerprint import Fingerprint
from girih_data3d.normalisation import Normalisation, Scheme, check_normalisation
from girih_data3d.plan import Plan
from girih_data3d.planning.anchors import START, optimise_anchors
from girih_data3d.planning.memory import Precision, training_bytes
from girih_data3d.planning.network import Encoder, Network
from girih_data3d.planning.objects_per_patch import count_around, percentile_around, queries_for
from girih_data3d.planning.spacing import Spacing, first_patch, median_size, target_spacing
from girih_data3d.planning.topology import Topology, possible_patches

Rule = Literal["default", "fixed"]

MEMORY_BUDGET_BYTES = 11_523_260_416 - 11 * 2**20
"""What nnDetection plans for: the memory of an RTX 2080 Ti less a margin of 11 MB; 10.72 GiB."""
FEW_OBJECTS = 30
"""Below, anchors follow single objects: there are nine widths to choose."""
FIXED = Topology((128, 128, 128), ((1, 1, 1), *((2, 2, 2),) * 5), ((3, 3, 3),) * 6)
"""Patch and stages of Eckstein et al. 2025, "fixed"."""
FIXED_SPACING: Spacing = (1.0, 1.0, 1.0)
MASK_BELOW = 0.75
"""Median share of voxels left by the crop, below which only the inside counts for the z-score (nnU-Net: brains)."""
LARGE_PERCENTILE = 99.5
GREY_VALUES = 255
"""Largest value of 8-bit images."""


def make_plan(
    fingerprint: Fingerprint,
    *,
    rule: Rule = "default",
    encoder: Encoder = "resenc_l",
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    batch_size: int = 4,
    precision: Precision = "no",
    normalisation: Scheme | None = None,
    seed: int = 0,
) -> Plan:
    """Return the plan of a dataset: the same fingerprint and settings always give the same plan.

    Args:
        fingerprint: of the raw dataset.
        rule: "default": voxel size, patch and stages from the dataset as nnDetection plans them, the patch as large as
            fits into the memory (see `possible_patches`); "fixed": 1 mm, 128^3 and six stages (Eckstein et al. 2025),
            whatever that takes. Anchors are the dataset's own with both.
        encoder: "resenc_l" or the plain one of "retina_unet".
        memory_budget_bytes: of the GPU, for training (counted, see `planning.memory`).
        batch_size: patches per step on that GPU.
        precision: of that training: "no" is full precision, as `girih finetune` trains unless asked, "bf16" mixed, in
            which a patch takes about half the memory.
        normalisation: scheme; None: with the default rule "ct" for CT (window and moments of the voxels inside objects)
            and z-scores for all else, as nnDetection does; with the fixed rule z-scores, as the published encoders that
            it is for were pre-trained with.
        seed: of the search for anchors.

    Raises:
        ValueError: no patch is small enough for the memory, the scans are too small for any patch, "ct" for intensities
            that have no range, or a batch or budget that is not positive.
    """
    check_settings(batch_size=batch_size, memory_budget_bytes=memory_budget_bytes, seed=seed)
    notes: list[str] = []
    channels, classes = len(fingerprint.intensities), max(1, len(fingerprint.classes))
    spacing = FIXED_SPACING
    if rule == "default":
        spacing = target_spacing(fingerprint.spacings_mm, fingerprint.sizes)
        median = median_size(fingerprint.spacings_mm, fingerprint.sizes, spacing)
        network = _largest(spacing, median, encoder, channels, classes, batch_size, memory_budget_bytes, precision)
    else:
        network = Network(FIXED, encoder, channels, classes)
    topology = network.topology
    needed = training_bytes(network, batch_size, precision)
    notes.append(
        f"{rule} rule; training Retina U-Net with --precision {precision} takes about {needed / 2**30:.1f} GiB, "
        "counted, not measured; Deformable DETR takes other amounts"
    )
    if needed > memory_budget_bytes:
        notes.append(
            f"that is more than the budget of {memory_budget_bytes / 2**30:.1f} GiB, which a fixed patch ignores"
        )
    boxes = fingerprint.boxes_at(spacing)
    sizes = boxes[:, 3:] - boxes[:, :3]
    levels = [topology.strides[level] for level in topology.levels]
    sides, overlap, p95 = tuple((a, b, c) for a in START for b in START for c in START), None, None
    if len(sizes):
        found = optimise_anchors(sizes, levels, seed=seed)
        sides, overlap = found.sizes_zyx_voxels, found.mean_best_iou
        notes.append(f"anchors are fitted to {found.objects} of {len(sizes)} objects, seed {seed}")
        if len(sizes) < FEW_OBJECTS:
            notes.append(f"with fewer than {FEW_OBJECTS} objects, the anchors may fit these and no others")
        p95 = percentile_around(
            count_around((boxes[:, :3] + boxes[:, 3:]) / 2, fingerprint.box_case, topology.patch_zyx)
        )
        large = np.percentile(sizes, LARGE_PERCENTILE, axis=0)
        if (large > topology.patch_zyx).any():
            shown = " x ".join(f"{size:.0f}" for size in large)
            notes.append(
                f"objects of up to {shown} voxels are larger than the patch: a second detector at twice the voxel size "
                "would see them whole, as nnDetection adds one (3dlr1)"
            )
    else:
        notes.append("no object in the dataset: the anchors are those that nnDetection's search starts from")
    return Plan(
        dataset=fingerprint.dataset,
        dataset_fingerprint_sha256=fingerprint.sha256,
        classes=fingerprint.classes,
        modalities=tuple(sorted({case.modality or "unknown" for case in fingerprint.cases})),
        spacing_zyx_mm=spacing,
        patch_zyx=topology.patch_zyx,
        batch_size=batch_size,
        normalisation=dict(_normalisation(fingerprint, rule, normalisation, notes)),
        encoder=network.describe_encoder(),
        neck=network.describe_neck(),
        levels=topology.levels,
        anchors={"sizes_zyx_voxels": [list(side) for side in sides], "mean_best_iou": overlap},
        objects_per_patch_p95=p95,
        queries=None if p95 is None else queries_for(p95),
        memory_budget_bytes=memory_budget_bytes,
        notes=tuple(notes),
    )


def check_settings(*, batch_size: int, memory_budget_bytes: int, seed: int = 0) -> None:
    """Check what `make_plan` needs besides a fingerprint, before one is measured.

    Raises:
        ValueError: a batch or budget that is not positive, or a seed that is negative.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("memory_budget_bytes", memory_budget_bytes, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}, wanted {least} or more")


def bytes_of(memory_gb: float | None) -> int:
    """Return a number of GiB in bytes; None is `MEMORY_BUDGET_BYTES`.

    Raises:
        ValueError: it is not above 0, or not finite.
    """
    if memory_gb is None:
        return MEMORY_BUDGET_BYTES
    if not (math.isfinite(memory_gb) and memory_gb > 0):
        raise ValueError(f"memory_gb is {memory_gb}, wanted a number of GiB above 0")
    return max(1, round(memory_gb * 2**30))


def _largest(
    spacing: Spacing,
    median: tuple[float, float, float],
    encoder: Encoder,
    channels: int,
    classes: int,
    batch_size: int,
    budget: int,
    precision: Precision,
) -> Network:
    """Return the network of the largest patch whose training fits into the budget."""
    network = None
    for topology in possible_patches(first_patch(spacing, median), spacing):
        network = Network(topology, encoder, channels, classes)
        if training_bytes(network, batch_size, precision) <= budget:
            return network
    shown = " x ".join(f"{size:.0f}" for size in median)
    if network is None:
        raise ValueError(
            f"the median scan has {shown} voxels at {spacing} mm: too small for two stages, wanted 8 along an axis"
        )
    needed = training_bytes(network, batch_size, precision)
    raise ValueError(
        f"the memory is {budget} bytes: the smallest patch, {network.topology.patch_zyx}, takes {needed} in batches "
        f"of {batch_size}; wanted at least that, or smaller batches"
    )


def _normalisation(fingerprint: Fingerprint, rule: Rule, wanted: Scheme | None, notes: list[str]) -> Normalisation:
    modalities = {(case.modality or "unknown").upper() for case in fingerprint.cases}
    measured = [i for i in fingerprint.intensities if i is not None]
    low = min((i.percentile_00_5 for i in measured), default=0.0)
    high = max((i.percentile_99_5 for i in measured), default=0.0)
    ranged = len(measured) == len(fingerprint.intensities) and low < high and all(i.std > 0 for i in measured)
    scheme = wanted
    if scheme is None:
        scheme = "zscore"
        if rule == "fixed":
            notes.append("z-scores, as the published encoders were pre-trained with")
        elif modalities == {"CT"} and ranged:
            scheme = "ct"
        elif modalities == {"CT"}:
            notes.append("z-scores: the intensities that were measured have no range to clip a CT to")
        else:
            names = ", ".join(sorted({case.modality or "unknown" for case in fingerprint.cases}))
            kept = np.median([np.prod(case.cropped_zyx) / np.prod(case.shape_zyx) for case in fingerprint.cases])
            scheme = "zscore_mask" if kept < MASK_BELOW else "zscore"
            notes.append(f"z-scores, modality {names}" + (", inside the scan only" if kept < MASK_BELOW else ""))
            if "UNKNOWN" in modalities:
                notes.append("if these are CT, name the modality in dataset.json, or plan with --normalisation ct")
    if scheme != "ct":
        return check_normalisation(scheme, clip=None, mean=None, std=None)
    if not ranged:
        raise ValueError(f"normalisation is 'ct', but the intensities measured have no range: {low} to {high}")
    if fingerprint.intensities_of == "nonzero":
        notes.append("no object in the dataset: window and moments are those of all voxels that are not zero")
    if min(i.min for i in measured) >= 0 and max(i.max for i in measured) <= GREY_VALUES:
        notes.append(f"the intensities lie in 0 to {GREY_VALUES}: these are no Hounsfield units of a CT")
    if len(measured) > 1:
        notes.append("one window for all channels: the widest of theirs")
    mean, std = tuple(i.mean for i in measured), tuple(i.std for i in measured)
    return check_normalisation("ct", clip=(low, high), mean=mean, std=std)
