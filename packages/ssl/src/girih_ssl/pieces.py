"""Boxes of a patch, and the pieces in which a patch is worked through."""

from collections.abc import Iterator, Sequence

import torch

from girih_ssl.interfaces import Triple

Box = tuple[slice, slice, slice]
"""Voxels of a patch along (z, y, x); start and stop are never None."""

VOXELS = 2**18
"""Of a piece on a CPU, about: one megabyte of float32."""


def whole(patch_zyx: Triple) -> Box:
    """Return the box that is the patch."""
    depth, height, width = patch_zyx
    return slice(0, depth), slice(0, height), slice(0, width)


def pieces(boxes: Sequence[Box], patch_zyx: Triple, device: torch.device) -> Iterator[Box]:
    """Yield disjoint boxes that cover all of `boxes` and not much else.

    On a CPU each has a few planes, so that what is computed from it stays in the cache: large arrays that come and go
    cost more than the arithmetic. Any other device gets a single piece, since it wants few kernels.
    """
    depth, height, width = patch_zyx
    planes = max(1, VOXELS // (height * width)) if device.type == "cpu" else depth
    for first in range(0, depth, planes):
        slab = (slice(first, min(first + planes, depth)), slice(0, height), slice(0, width))
        found = [common for common in (overlap(slab, box) for box in boxes) if common is not None]
        if found:
            z, y, x = (
                slice(min(part.start for part in parts), max(part.stop for part in parts))
                for parts in zip(*found, strict=True)
            )
            yield z, y, x


def overlap(a: Box, b: Box) -> Box | None:
    """Return the voxels in both boxes, None if there are none."""
    z, y, x = (slice(max(m.start, n.start), min(m.stop, n.stop)) for m, n in zip(a, b, strict=True))
    return (z, y, x) if z.start < z.stop and y.start < y.stop and x.start < x.stop else None


def within(box: Box, frame: Box) -> Box:
    """Return the box counted from the first voxel of a frame that holds it."""
    z, y, x = (slice(n.start - m.start, n.stop - m.start) for n, m in zip(box, frame, strict=True))
    return z, y, x
