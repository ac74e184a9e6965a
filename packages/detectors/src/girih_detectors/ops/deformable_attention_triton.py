"""Multi-scale deformable attention in 3D in Triton, forward and backward; `deformable_attention.py` calls it.

    u = location * (W, H, D) - 1/2     i = floor(u)     f = u - i     share of corner k < 8: product of f or 1 - f
    out[query, head] = sum over levels, points and corners of  weight * share_k * value_k

With g the gradient of `out` and dot_k = <value_k, g>: value_k gets weight * share_k * g, the weight gets the sum of
share_k * dot_k, and u gets weight times the sum of (derivative of share_k) * dot_k.

A program takes a tile of queries of one head: neighbouring queries share corners in L1, and programs that run at the
same time share a head, whose part of `value` and of its gradient stays in L2. Everything is read as float32 (float64
for float64 values) and added up in it. Gradients of values are added by relaxed atomics to a float32 buffer, all other
gradients belong to one program and are stored once.

Fused, the kernels take offsets and logits for locations and weights. The softmax and the locations are computed in
registers, in the backward pass again, so that nothing but the inputs is kept between the two.

Deterministic, the buffer holds int64 multiples of a power of two, found on the device from the largest gradient and
weight, such that no sum can overflow: sums of integers do not depend on their order.
"""

# Triton takes annotations of a kernel's parameters for its own
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret  # what the decorators below obey, as it was at this import


@triton.jit
def _read(pointer, mask, real: tl.constexpr):
    return tl.load(pointer, mask=mask, other=0.0).to(real)  # the interpreter's bfloat16 arithmetic is nonsense


@triton.jit
def _program(queries, heads: tl.constexpr, tile: tl.constexpr):
    """Batch item and head of this program, and its rows of (batch, queries), which of them are none."""
    tiles = tl.cdiv(queries, tile)
    pair = tl.program_id(0) // tiles
    query = (tl.program_id(0) % tiles) * tile + tl.arange(0, tile)
    batch = (pair // heads).to(tl.int64)
    return batch, pair % heads, batch * queries + query, query < queries


@triton.jit
def _extent(sizes, level, axis: tl.constexpr, levels: tl.constexpr):
    """Cells of the level along x, y or z."""
    found = sizes[axis]
    for other in tl.static_range(1, levels):
        found = tl.where(level == other, sizes[3 * other + axis], found)
    return found


@triton.jit
def _anchor(reference, mask, extent, axis: tl.constexpr, points: tl.constexpr, form: tl.constexpr, real: tl.constexpr):
    """What u + 1/2 is at place 0, and how far it goes per unit of the place."""
    if form == 0:
        centre = tl.full([], 0, real)
        step = extent.to(real)
    else:
        centre = _read(reference + axis, mask, real) * extent
        if form == 3:
            step = tl.full([], 1, real)
        else:
            step = _read(reference + 3 + axis, mask, real) * (extent * 0.5 / points)
    return centre, step


@triton.jit
def _around(u, extent, index: tl.constexpr):
    """Lower of the two cells around u and how far u is beyond it; -2 and 0 if neither is inside or u is NaN."""
    inside = (u >= -1) & (u < extent)
    low = tl.where(inside, tl.floor(u), -2)  # so nothing is cast that an integer cannot hold
    return low.to(index), tl.where(inside, u - low, 0)


@triton.jit
def _corner(corner: tl.constexpr, x, y, z, fx, fy, fz, width, height, depth):
    """Row of a corner within its level, whether it is inside, and its shares along x, y and z."""
    x, fx = x + (corner & 1), fx if corner & 1 else 1 - fx
    y, fy = y + (corner >> 1 & 1), fy if corner & 2 else 1 - fy
    z, fz = z + (corner >> 2), fz if corner & 4 else 1 - fz
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (z >= 0) & (z < depth)
    return (z * height + y) * width + x, inside, fx, fy, fz


@triton.jit
def _normaliser(scores, mask, count: tl.constexpr, real: tl.constexpr):
    """Largest logit of each row and the sum of exp(logit - largest)."""
    top = _read(scores, mask, real)
    for other in tl.static_range(1, count):
        top = tl.maximum(top, _read(scores + other, mask, real))
    total = tl.zeros_like(top)
    for other in tl.static_range(count):
        total += tl.exp(_read(scores + other, mask, real) - top)
    return top, total


@triton.jit(do_not_specialize=["queries", "cells"])
def _forward(
    out, value, places, scores, reference, sizes, queries, cells,
    heads: tl.constexpr, channels: tl.constexpr, levels: tl.constexpr, points: tl.constexpr, form: tl.constexpr,
    columns: tl.constexpr, lanes: tl.constexpr, tile: tl.constexpr, index: tl.constexpr, real: tl.constexpr,
):  # fmt: skip
    batch, head, row, mask = _program(queries, heads, tile)
    lane = tl.arange(0, lanes)[None, :]
    wanted = mask[:, None] & (lane < channels)
    value += (batch * cells * heads + head) * channels
    places += (row * heads + head) * (levels * points * 3)
    scores += (row * heads + head) * (levels * points)
    if form != 0:
        reference += row * form
        top, total = _normaliser(scores, mask, levels * points, real)
    total_value = tl.zeros([tile, lanes], real)
    first = tl.full([], 0, index)
    for level in range(levels):
        ex = _extent(sizes, level, 0, levels)
        ey = _extent(sizes, level, 1, levels)
        ez = _extent(sizes, level, 2, levels)
        width, height, depth = ex.to(index), ey.to(index), ez.to(index)
        ax, sx = _anchor(reference, mask, ex, 0, points, form, real)
        ay, sy = _anchor(reference, mask, ey, 1, points, form, real)
        az, sz = _anchor(reference, mask, ez, 2, points, form, real)
        for point in range(points):
            place = places + (level * points + point) * 3
            x, fx = _around(ax + _read(place, mask, real) * sx - 0.5, ex, index)
            y, fy = _around(ay + _read(place + 1, mask, real) * sy - 0.5, ey, index)
            z, fz = _around(az + _read(place + 2, mask, real) * sz - 0.5, ez, index)
            weight = _read(scores + level * points + point, mask, real)
            if form != 0:
                weight = tl.exp(weight - top) / total
            for corner in tl.static_range(8):
                cell, inside, wx, wy, wz = _corner(corner, x, y, z, fx, fy, fz, width, height, depth)
                at = ((first + cell) * (heads * channels))[:, None] + lane
                corner_value = _read(value + at, wanted & inside[:, None], real)
                total_value += (weight * (wx * wy * wz))[:, None] * corner_value
        first += width * height * depth
    out += ((row * heads + head) * channels)[:, None] + lane
    tl.store(out, total_value.to(out.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=["queries", "cells"])
def _backward(
    grad_value, grad_places, grad_scores, grad_reference,
    grad_out, value, places, scores, reference, scale, sizes, queries, cells,
    heads: tl.constexpr, channels: tl.constexpr, levels: tl.constexpr, points: tl.constexpr, form: tl.constexpr,
    columns: tl.constexpr, lanes: tl.constexpr, tile: tl.constexpr, index: tl.constexpr, real: tl.constexpr,
):  # fmt: skip
    batch, head, row, mask = _program(queries, heads, tile)
    lane = tl.arange(0, lanes)[None, :]
    wanted = mask[:, None] & (lane < channels)
    value += (batch * cells * heads + head) * channels
    row = row * heads + head
    places += row * (levels * points * 3)
    scores += row * (levels * points)
    gradient = _read(grad_out + (row * channels)[:, None] + lane, wanted, real)
    if grad_value is not None:
        grad_value += (batch * cells * heads + head) * channels
        if scale is not None:
            unit = tl.load(scale)
    if form != 0:
        reference += (row // heads) * form
        top, total = _normaliser(scores, mask, levels * points, real)
    zero = tl.zeros([tile], real)
    column = tl.arange(0, columns)[None, :]
    by_score = tl.zeros([tile, columns], real)
    by_x, by_y, by_z = by_score, by_score, by_score
    first = tl.full([], 0, index)
    for level in range(levels):
        ex = _extent(sizes, level, 0, levels)
        ey = _extent(sizes, level, 1, levels)
        ez = _extent(sizes, level, 2, levels)
        width, height, depth = ex.to(index), ey.to(index), ez.to(index)
        ax, sx = _anchor(reference, mask, ex, 0, points, form, real)
        ay, sy = _anchor(reference, mask, ey, 1, points, form, real)
        az, sz = _anchor(reference, mask, ez, 2, points, form, real)
        for point in range(points):
            place = places + (level * points + point) * 3
            x, fx = _around(ax + _read(place, mask, real) * sx - 0.5, ex, index)
            y, fy = _around(ay + _read(place + 1, mask, real) * sy - 0.5, ey, index)
            z, fz = _around(az + _read(place + 2, mask, real) * sz - 0.5, ez, index)
            weight = _read(scores + level * points + point, mask, real)
            if form != 0:
                weight = tl.exp(weight - top) / total
            sampled, ux, uy, uz = zero, zero, zero, zero
            for corner in tl.static_range(8):
                cell, inside, wx, wy, wz = _corner(corner, x, y, z, fx, fy, fz, width, height, depth)
                at = ((first + cell) * (heads * channels))[:, None] + lane
                here = wanted & inside[:, None]
                if grad_value is not None:
                    contribution = (weight * (wx * wy * wz))[:, None] * gradient
                    if scale is not None:
                        contribution = (contribution * unit).to(tl.int64)
                    tl.atomic_add(grad_value + at, contribution, mask=here, sem="relaxed")
                if grad_places is not None:
                    dot = tl.sum(_read(value + at, here, real) * gradient, axis=1)
                    sampled += wx * wy * wz * dot
                    ux += wy * wz * dot * (1 if corner & 1 else -1)
                    uy += wx * wz * dot * (1 if corner & 2 else -1)
                    uz += wx * wy * dot * (1 if corner & 4 else -1)
            if grad_places is not None:
                here = column == level * points + point
                by_score = tl.where(here, sampled[:, None], by_score)
                by_x = tl.where(here, (ux * weight)[:, None], by_x)
                by_y = tl.where(here, (uy * weight)[:, None], by_y)
                by_z = tl.where(here, (uz * weight)[:, None], by_z)
        first += width * height * depth
    if grad_places is not None:
        inside = mask[:, None] & (column < levels * points)
        at = (row * (levels * points))[:, None] + column
        if form != 0:  # so far by_score is the gradient of the softmax
            share = tl.exp(_read(scores[:, None] + column, inside, real) - top[:, None]) / total[:, None]
            share = tl.where(inside, share, 0)
            by_score = share * (by_score - tl.sum(share * by_score, axis=1)[:, None])
            grad_reference += row * form
        tl.store(grad_scores + at, by_score.to(grad_scores.dtype.element_ty), mask=inside)
        for axis in tl.static_range(3):
            by_u = by_x if axis == 0 else by_y if axis == 1 else by_z
            extent = _extent(sizes, column // points, axis, levels)
            step = extent
            if form == 3:
                step = 1
            if form == 6:
                step = _read(reference + 3 + axis, mask, real)[:, None] * (extent * 0.5 / points)
                place = _read(places[:, None] + column * 3 + axis, inside, real)
                tl.store(grad_reference + 3 + axis, tl.sum(by_u * place * (extent * 0.5 / points), axis=1), mask=mask)
            if form != 0:
                tl.store(grad_reference + axis, tl.sum(by_u * extent, axis=1), mask=mask)
            tl.store(grad_places + at * 3 + axis, (by_u * step).to(grad_places.dtype.element_ty), mask=inside)


class Config(NamedTuple):
    """How a kernel is launched: elements of a tile (queries x padded channels), warps, and registers of a thread."""

    elements: int
    warps: int
    registers: int


CONFIGS = {
    "forward": Config(1024, 4, 128),
    "backward": Config(512, 4, 128),
    "deterministic": Config(256, 4, 128),
}


def forward(
    value: Float[Tensor, "b s h c"],
    spatial_shapes: Sequence[tuple[int, int, int]],
    sampling_locations: Float[Tensor, "b q h l p 3"],
    attention_weights: Float[Tensor, "b q h l p"],
) -> Float[Tensor, "b q h*c"]:
    """Return deformable attention, in the value's dtype."""
    return _launch_forward(value, spatial_shapes, None, sampling_locations, attention_weights)


def fused_forward(
    value: Float[Tensor, "b s h c"],
    spatial_shapes: Sequence[tuple[int, int, int]],
    reference_points: Float[Tensor, "b q r"],
    offsets: Float[Tensor, "b q h l p 3"],
    logits: Float[Tensor, "b q h l p"],
) -> Float[Tensor, "b q h*c"]:
    """Return deformable attention at reference points (x, y, z) or (x, y, z, dx, dy, dz), in the value's dtype.

    location = point + offset / (W, H, D), or centre + offset / p * size * 0.5; weight = softmax of logits over (l, p).
    """
    return _launch_forward(value, spatial_shapes, reference_points, offsets, logits)


def backward(
    grad_output: Float[Tensor, "b q h*c"],
    value: Float[Tensor, "b s h c"],
    spatial_shapes: Sequence[tuple[int, int, int]],
    sampling_locations: Float[Tensor, "b q h l p 3"],
    attention_weights: Float[Tensor, "b q h l p"],
    *,
    needs: tuple[bool, bool, bool],
    deterministic: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of value, locations and weights, each in its input's dtype, None where `needs` says so.

    Deterministic, the gradient of the value is the same to the bit in every run and for every order of the queries;
    all of it is NaN where a gradient or a weight is not finite.
    """
    of_value, _, *others = _launch_backward(
        grad_output, value, spatial_shapes, None, sampling_locations, attention_weights,
        of_value=needs[0], of_others=any(needs[1:]), deterministic=deterministic,
    )  # fmt: skip
    of_locations, of_weights = (grad if wanted else None for grad, wanted in zip(others, needs[1:], strict=True))
    return of_value, of_locations, of_weights


def fused_backward(
    grad_output: Float[Tensor, "b q h*c"],
    value: Float[Tensor, "b s h c"],
    spatial_shapes: Sequence[tuple[int, int, int]],
    reference_points: Float[Tensor, "b q r"],
    offsets: Float[Tensor, "b q h l p 3"],
    logits: Float[Tensor, "b q h l p"],
    *,
    needs: tuple[bool, bool, bool, bool],
    deterministic: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of value, reference points, offsets and logits, as `backward` does."""
    of_value, *others = _launch_backward(
        grad_output, value, spatial_shapes, reference_points, offsets, logits,
        of_value=needs[0], of_others=any(needs[1:]), deterministic=deterministic,
    )  # fmt: skip
    of_points, of_offsets, of_logits = (
        grad if wanted else None for grad, wanted in zip(others, needs[1:], strict=True)
    )
    return of_value, of_points, of_offsets, of_logits


def _launch_forward(
    value: Tensor, shapes: Sequence[tuple[int, int, int]], reference: Tensor | None, places: Tensor, scores: Tensor
) -> Tensor:
    batch, queries, heads = places.shape[:3]
    out = value.new_empty((batch, queries, heads * value.shape[3]))
    if out.numel() > 0:
        inputs = (value, places, scores, reference)
        _launch(_forward, "forward", (out, *map(_contiguous, inputs)), value, shapes, reference, places)
    return out


def _launch_backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Sequence[tuple[int, int, int]],
    reference: Tensor | None,
    places: Tensor,
    scores: Tensor,
    *,
    of_value: bool,
    of_others: bool,
    deterministic: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    real = _real(value)
    grad_value = grad_reference = grad_places = grad_scores = scale = None
    if of_value:
        grad_value = torch.zeros_like(
            value, dtype=torch.int64 if deterministic else real, memory_format=torch.contiguous_format
        )
    if of_others:
        grad_places, grad_scores = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (places, scores))
        if reference is not None:
            grad_reference = reference.new_empty((*places.shape[:3], reference.shape[-1]), dtype=real)
    if grad_output.numel() > 0 and (of_value or of_others):
        if of_value and deterministic:
            scale = _scale(grad_output, scores if reference is None else None, places.shape[1] * places.shape[4], real)
        grads = (grad_value, grad_places, grad_scores, grad_reference)
        inputs = (grad_output, value, places, scores, reference)
        kernel = "deterministic" if scale is not None else "backward"
        _launch(_backward, kernel, (*grads, *map(_contiguous, inputs), scale), value, shapes, reference, places)
    if grad_value is not None:
        if scale is not None:
            grad_value = grad_value.to(real) / scale
        grad_value = grad_value.to(value.dtype)
    if grad_reference is not None and reference is not None:
        grad_reference = grad_reference.sum(2).to(reference.dtype)  # over the heads
    return grad_value, grad_reference, grad_places, grad_scores


def _launch(
    kernel: Any,
    name: str,
    pointers: tuple[Tensor | None, ...],
    value: Tensor,
    shapes: Sequence[tuple[int, int, int]],
    reference: Tensor | None,
    places: Tensor,
) -> None:
    batch, cells, heads, channels = value.shape
    queries, _, levels, points = places.shape[1:5]
    lanes = triton.next_power_of_2(channels)
    config = CONFIGS[name]
    tile = max(1, config.elements // lanes)
    with torch.cuda.device(value.get_device()):  # a launch goes to the current device; -1, the CPU, changes nothing
        kernel[(triton.cdiv(queries, tile) * heads * batch,)](
            *pointers,
            tuple(
                float(n) for shape in shapes for n in reversed(shape)
            ),  # integers would be compiled anew for 1 and 16
            queries,
            cells,
            heads=heads,
            channels=channels,
            levels=levels,
            points=points,
            form=0 if reference is None else reference.shape[-1],
            columns=triton.next_power_of_2(levels * points),
            lanes=lanes,
            tile=tile,
            index=tl.int32 if cells * heads * channels < 2**31 else tl.int64,
            real=tl.float64 if value.dtype == torch.float64 else tl.float32,
            num_warps=config.warps,
            maxnreg=config.registers,
            enable_fp_fusion=True,
        )


def _scale(gradient: Tensor, weights: Tensor | None, hits: int, real: torch.dtype) -> Float[Tensor, ""]:
    """Largest power of two such that `hits` products of a gradient and a weight cannot overflow 2^62; NaN for NaN."""
    largest = [torch.linalg.vector_norm(t, torch.inf, dtype=real) for t in (gradient, weights) if t is not None]
    exponent = torch.frexp(torch.stack(largest)).exponent.sum()
    power = (62 - hits.bit_length() - exponent).clamp(-126, 126)
    scale = ((power + 1023) << 52).view(torch.float64).to(real)
    finite = torch.isfinite(torch.stack(largest)).all()
    return torch.where(finite, scale, torch.nan)


def _real(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
