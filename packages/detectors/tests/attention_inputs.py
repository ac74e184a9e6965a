"""Small inputs of the operators of deformable attention, {case: (inputs, operator, reference)}; see `test_*.py`."""

import torch

from girih_detectors.ops import deformable_attention, fused_deformable_attention
from girih_detectors.ops.deformable_attention_reference import (
    deformable_attention_reference,
    fused_deformable_attention_reference,
)

SHAPES = ((3, 4, 5), (2, 1, 3))
VOXELS = 66


def plain(dtype=torch.float64, batch=2, queries=3, heads=2, channels=3, points=2):
    """value, locations, weights."""
    places = torch.promote_types(dtype, torch.float32)
    rows = (batch, queries, heads, len(SHAPES), points)
    value = torch.randn(batch, VOXELS, heads, channels, dtype=dtype)
    return value, 1.4 * torch.rand(*rows, 3, dtype=places) - 0.2, torch.randn(rows, dtype=dtype)


def fused(dtype=torch.float64, entries=3, **sizes):
    """value, reference points, offsets, logits."""
    value, places, logits = plain(dtype, **sizes)
    points = torch.rand(*places.shape[:2], entries, dtype=places.dtype)
    return value, points, 2 * torch.randn(places.shape, dtype=dtype), logits


CASES = {
    "plain": (plain, deformable_attention, deformable_attention_reference),
    "fused, points": (fused, fused_deformable_attention, fused_deformable_attention_reference),
    "fused, boxes": (
        lambda *a, **k: fused(*a, entries=6, **k),
        fused_deformable_attention,
        fused_deformable_attention_reference,
    ),
}
