"""Kernels of 3D multi-scale deformable attention in Triton; `deformable_attention_triton.py` launches them.

    u = location * (W, H, D) - 1/2     i = floor(u)     f = u - i     share of corner k < 8: product of f or 1 - f
    out[query, head] = sum over levels, points and corners of  weight * share_k * value_k

With g the gradient of `out` and dot_k = <value_k, g>: value_k gets weight * share_k * g, the weight gets the sum of
share_k * dot_k, and u gets weight times the sum of (derivative of share_k) * dot_k.

A program takes a tile of queries of one head: neighbouring queries share corners in L1, and programs that run at the
same time share a head, whose part of `value` and of its gradient stays in L2. Everything is read as float32 (float64
for float64 values) and added up in it. Gradients of values are added by relaxed atomics, all other gradients belong to
one program, which keeps them in registers and stores them once.
"""

# Triton takes annotations of a kernel's parameters for its own
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"

import triton
import triton.language as tl


@triton.jit
def _read(pointer, mask, real: tl.constexpr):
    return tl.load(pointer, mask=mask, other=0.0).to(real)  # the interpreter's bfloat16 arithmetic is nonsense


@triton.jit
def _program(queries, heads: tl.constexpr, tile: tl.constexpr):
    """Batch item and head of this program, its rows among all queries of all items, and which of them there are."""
    tiles = tl.cdiv(queries, tile)
    pair = tl.program_id(0) // tiles
    query = (tl.program_id(0) % tiles) * tile + tl.arange(0, tile)
    batch = (pair // heads).to(tl.int64)
    return batch, pair % heads, batch * queries + query, query < queries


@triton.jit
def _extent(sizes, level, axis: tl.constexpr, levels: tl.constexpr):
    """Cells of a level along x, y or z; `level` may be a tensor."""
    found = sizes[axis]
    for other in tl.static_range(1, levels):
        found = tl.where(level == other, sizes[3 * other + axis], found)
    return found


@triton.jit
def _axis(
    sizes, reference, mask, level, axis: tl.constexpr,
    levels: tl.constexpr, points: tl.constexpr, form: tl.constexpr, real: tl.constexpr,
):  # fmt: skip
    """Along x, y or z: cells of the level, u + 1/2 at place 0, and how far u goes per unit of the place."""
    extent = _extent(sizes, level, axis, levels).to(real)
    if form == 0:
        start = tl.full([], 0, real)
        step = extent
    else:
        start = _read(reference + axis, mask, real) * extent
        if form == 3:
            step = tl.full([], 1, real)
        else:
            step = _read(reference + 3 + axis, mask, real) * extent * (0.5 / points)
    return extent, start, step


@triton.jit
def _around(u, extent, index: tl.constexpr):
    """Lower of the two cells around u, and how far u is beyond it; -2 and 0 if neither is inside or u is NaN."""
    inside = (u >= -1) & (u < extent)
    low = tl.where(inside, tl.floor(u), -2)  # so nothing is cast that an integer cannot hold
    return low.to(index), tl.where(inside, u - low, 0)


@triton.jit
def _corner(corner: tl.constexpr, x, y, z, fx, fy, fz, width, height, depth):
    """Row of a corner in its level, whether it is inside, and its shares along x, y and z."""
    x, fx = x + (corner & 1), fx if corner & 1 else 1 - fx
    y, fy = y + (corner >> 1 & 1), fy if corner & 2 else 1 - fy
    z, fz = z + (corner >> 2), fz if corner & 4 else 1 - fz
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (z >= 0) & (z < depth)
    return (z * height + y) * width + x, inside, fx, fy, fz


@triton.jit
def _softmax(scores, mask, count: tl.constexpr, real: tl.constexpr):
    """Largest logit of each row and the sum of exp(logit - largest); unrolled, so that no loop fixes a layout."""
    top = _read(scores, mask, real)
    for other in tl.static_range(1, count):
        top = tl.maximum(top, _read(scores + other, mask, real))
    norm = tl.zeros_like(top)
    for other in tl.static_range(count):
        norm += tl.exp(_read(scores + other, mask, real) - top)
    return top, norm


@triton.jit(do_not_specialize=["queries", "cells"])
def attend(
    out, value, places, scores, reference, sizes, queries, cells,
    heads: tl.constexpr, channels: tl.constexpr, levels: tl.constexpr, points: tl.constexpr, form: tl.constexpr,
    lanes: tl.constexpr, tile: tl.constexpr, index: tl.constexpr, real: tl.constexpr,
):  # fmt: skip
    """Attended values of a tile of queries of one head.

    With `form` 0 places are locations and scores weights; with 3 or 6, the length of a reference point, they are
    offsets and logits. `sizes` are (W, H, D) of the levels, as floats; `lanes` are the channels, padded to a power of
    two.
    """
    batch, head, query, mask = _program(queries, heads, tile)
    row = query * heads + head
    lane = tl.arange(0, lanes)[None, :]
    wanted = mask[:, None] & (lane < channels)
    value += (batch * cells * heads + head) * channels
    places += row * (levels * points * 3)
    scores += row * (levels * points)
    if form != 0:
        reference += query * form
        top, norm = _softmax(scores, mask, levels * points, real)
    attended = tl.zeros([tile, lanes], real)
    first = tl.full([], 0, index)
    for level in range(levels):
        ex, x0, dx = _axis(sizes, reference, mask, level, 0, levels, points, form, real)
        ey, y0, dy = _axis(sizes, reference, mask, level, 1, levels, points, form, real)
        ez, z0, dz = _axis(sizes, reference, mask, level, 2, levels, points, form, real)
        width, height, depth = ex.to(index), ey.to(index), ez.to(index)
        for point in range(points):
            place = places + (level * points + point) * 3
            x, fx = _around(x0 + _read(place, mask, real) * dx - 0.5, ex, index)
            y, fy = _around(y0 + _read(place + 1, mask, real) * dy - 0.5, ey, index)
            z, fz = _around(z0 + _read(place + 2, mask, real) * dz - 0.5, ez, index)
            weight = _read(scores + level * points + point, mask, real)
            if form != 0:
                weight = tl.exp(weight - top) / norm
            for corner in tl.static_range(8):
                cell, inside, wx, wy, wz = _corner(corner, x, y, z, fx, fy, fz, width, height, depth)
                at = ((first + cell) * (heads * channels))[:, None] + lane
                attended += (weight * (wx * wy * wz))[:, None] * _read(value + at, wanted & inside[:, None], real)
        first += width * height * depth
    tl.store(out + (row * channels)[:, None] + lane, attended.to(out.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=["queries", "cells"])
def attend_backward(
    grad_value, grad_places, grad_scores, grad_reference,
    grad_out, value, places, scores, reference, scale, sizes, queries, cells,
    heads: tl.constexpr, channels: tl.constexpr, levels: tl.constexpr, points: tl.constexpr, form: tl.constexpr,
    columns: tl.constexpr, lanes: tl.constexpr, tile: tl.constexpr, index: tl.constexpr, real: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries of one head; None are not computed, those but `grad_value` come together.

    `grad_value` is added to; its unit is 1, or 1 / `scale` of the batch item where that is not None. `grad_reference`
    is one per head.
    `columns` are the levels * points, padded to a power of two that holds a reference point.
    """
    batch, head, query, mask = _program(queries, heads, tile)
    row = query * heads + head
    lane = tl.arange(0, lanes)[None, :]
    wanted = mask[:, None] & (lane < channels)
    value += (batch * cells * heads + head) * channels
    places += row * (levels * points * 3)
    scores += row * (levels * points)
    gradient = _read(grad_out + (row * channels)[:, None] + lane, wanted, real)
    if grad_value is not None:
        grad_value += (batch * cells * heads + head) * channels
    if scale is not None:
        unit = _read(scale + batch, True, real)
    if form != 0:
        reference += query * form
        top, norm = _softmax(scores, mask, levels * points, real)
    zero = tl.zeros([tile], real)
    column = tl.arange(0, columns)[None, :]
    by_score = tl.zeros([tile, columns], real)
    by_x, by_y, by_z = by_score, by_score, by_score
    first = tl.full([], 0, index)
    for level in range(levels):
        ex, x0, dx = _axis(sizes, reference, mask, level, 0, levels, points, form, real)
        ey, y0, dy = _axis(sizes, reference, mask, level, 1, levels, points, form, real)
        ez, z0, dz = _axis(sizes, reference, mask, level, 2, levels, points, form, real)
        width, height, depth = ex.to(index), ey.to(index), ez.to(index)
        for point in range(points):
            place = places + (level * points + point) * 3
            x, fx = _around(x0 + _read(place, mask, real) * dx - 0.5, ex, index)
            y, fy = _around(y0 + _read(place + 1, mask, real) * dy - 0.5, ey, index)
            z, fz = _around(z0 + _read(place + 2, mask, real) * dz - 0.5, ez, index)
            weight = _read(scores + level * points + point, mask, real)
            if form != 0:
                weight = tl.exp(weight - top) / norm
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
        if form != 0:  # from the gradient of the softmax to that of the logits
            share = tl.exp(_read(scores[:, None] + column, inside, real) - top[:, None]) / norm[:, None]
            share = tl.where(inside, share, 0)
            by_score = share * (by_score - tl.sum(share * by_score, axis=1)[:, None])
        tl.store(grad_scores + at, by_score.to(grad_scores.dtype.element_ty), mask=inside)
        by_reference = tl.zeros_like(by_score)
        for axis in tl.static_range(3):
            by_u = by_x if axis == 0 else by_y if axis == 1 else by_z
            extent = _extent(sizes, column // points, axis, levels)
            by_centre = by_u * extent
            by_place = by_centre if form == 0 else by_u
            if form == 6:  # a place or a side that is not finite has no part in it
                place = _read(places[:, None] + column * 3 + axis, inside, real)
                side = _read(reference + 3 + axis, mask, real)[:, None]
                by_side = tl.where(by_u == 0, 0, by_centre * place) * (0.5 / points)
                by_place = tl.where(by_u == 0, 0, by_centre * side) * (0.5 / points)
                by_reference = tl.where(column == 3 + axis, tl.sum(by_side, axis=1)[:, None], by_reference)
            if form != 0:
                by_reference = tl.where(column == axis, tl.sum(by_centre, axis=1)[:, None], by_reference)
            tl.store(grad_places + at * 3 + axis, by_place.to(grad_places.dtype.element_ty), mask=inside)
        if form != 0:
            at = (row * form)[:, None] + column
            tl.store(grad_reference + at, by_reference, mask=mask[:, None] & (column < form))
