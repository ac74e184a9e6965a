"""Deformable attention in plain torch, with the calls of `deformable_attention_triton`, for where that does not run.

Forward is the reference. Backward goes level by level too and keeps nothing but the inputs: it samples again for the
gradient of the weights, where autograd would have kept every sample of every level.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .deformable_attention_reference import (
    centre_and_step,
    deformable_attention_reference,
    grid,
    planes,
    sample,
    softmax,
    wide_dtype,
)

forward = deformable_attention_reference


def backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    needs: Sequence[bool],
    deterministic: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of value, locations and weights, each None unless it is needed.

    Args:
        grad_output: (b, q, h * c).
        value: (b, s, h, c).
        spatial_shapes: (D, H, W) of each level.
        sampling_locations: (b, q, h, l, p, 3).
        attention_weights: (b, q, h, l, p).
        needs: of value, locations, weights.
        deterministic: on the CPU it always is; on CUDA torch refuses `grid_sample`'s gradient in deterministic mode.
    """
    batch, _, heads, channels = value.shape
    wide = wide_dtype(value)
    queries = grad_output.shape[1]
    by_head = grad_output.to(wide).reshape(batch, queries, heads, channels)
    gradient = by_head.permute(0, 2, 3, 1).reshape(batch * heads, channels, queries, 1)
    inputs = (value, sampling_locations, attention_weights)
    of_value, of_locations, of_weights = (
        torch.empty(part.shape, dtype=part.dtype, device=part.device) if needed else None
        for part, needed in zip(inputs, needs, strict=True)
    )
    start = 0
    for index, shape in enumerate(spatial_shapes):
        voxels = slice(start, start + math.prod(shape))
        start = voxels.stop
        image = planes(value[:, voxels].to(wide), shape)
        at = grid(sampling_locations[:, :, :, index].to(wide))
        if of_weights is not None:  # (b * h, c, q, p) -> (b, h, q, p) -> (b, q, h, p)
            dots = (sample(image, at) * gradient).sum(1)
            of_weights[:, :, :, index] = dots.view(batch, heads, *dots.shape[1:]).transpose(1, 2)
        if of_value is None and of_locations is None:
            continue
        weight = attention_weights[:, :, :, index].to(wide).transpose(1, 2).flatten(0, 1)
        of_image, of_grid = torch.ops.aten.grid_sampler_3d_backward(
            (gradient * weight[:, None])[:, :, None], image, at, 0, 0, False, [needs[0], True]
        )
        if of_value is not None:  # (b * h, c, d, h, w) -> (b, h, c, s) -> (b, s, h, c)
            of_value[:, voxels] = of_image.view(batch, heads, channels, math.prod(shape)).permute(0, 3, 1, 2)
        if of_locations is not None:  # (b * h, 1, q, p, 3) -> (b, h, q, p, 3) -> (b, q, h, p, 3)
            by_query = of_grid.view(batch, heads, *of_grid.shape[2:]).transpose(1, 2)
            of_locations[:, :, :, index] = 2 * by_query  # a grid is 2 * location - 1
    return of_value, of_locations, of_weights


def fused_forward(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int, int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Return (b, q, h * c); the arguments are those of `fused_backward`."""
    wide = wide_dtype(value)
    centre, step = centre_and_step(reference_points.to(wide), spatial_shapes, offsets.shape[-2])
    return forward(value, spatial_shapes, centre + offsets * step, softmax(logits, wide))


def fused_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int, int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    *,
    needs: Sequence[bool],
    deterministic: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of value, reference points, offsets and logits, each None unless it is needed.

    Args:
        grad_output: (b, q, h * c).
        value: (b, s, h, c).
        spatial_shapes: (D, H, W) of each level.
        reference_points: (b, q, 3) or (b, q, 6).
        offsets: (b, q, h, l, p, 3).
        logits: (b, q, h, l, p).
        needs: of value, reference points, offsets, logits.
        deterministic: as in `backward`.
    """
    wide = wide_dtype(value)
    points, moved = reference_points.to(wide), offsets.to(wide)
    centre, step = centre_and_step(points, spatial_shapes, offsets.shape[-2])
    locations, weights = centre + moved * step, softmax(logits, wide)
    of_value, of_locations, of_weights = backward(
        grad_output,
        value,
        spatial_shapes,
        locations,
        weights,
        needs=(needs[0], needs[1] or needs[2], needs[3]),
        deterministic=deterministic,
    )
    of_points, of_offsets, of_logits = None, None, None
    if of_weights is not None:
        pull = weights * of_weights
        of_logits = (pull - weights * pull.sum((-1, -2), keepdim=True)).to(logits.dtype)
    if of_locations is not None:
        finite = locations.isfinite()  # elsewhere their gradient is zero, and zero times infinity would not be
        if needs[1]:
            parts = [of_locations]
            if points.shape[-1] == 6:
                parts.append(torch.where(finite, of_locations * moved, 0.0) * (0.5 / offsets.shape[-2]))
            of_points = torch.cat(parts, -1).sum((2, 3, 4)).to(reference_points.dtype)
        if needs[2]:
            of_offsets = torch.where(finite, of_locations * step, 0.0).to(offsets.dtype)
    return of_value, of_points, of_offsets, of_logits
