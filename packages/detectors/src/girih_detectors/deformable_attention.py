"""Deformable attention as a layer (Zhu et al., 2021, "Deformable DETR", section 4.1, in 3D): it learns where to look.

Outside, all is (z, y, x), as boxes are. Inside, where `grid_sample` rules, it is (x, y, z): offsets are learnt in that
order, and `zyx_to_grid` is the one place where axes turn.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .ops import fused_deformable_attention
from .ops.backends import Backend, check_backend

Directions = Literal["auto", "nndetection"]
DIRECTIONS: tuple[str, ...] = get_args(Directions)
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


class DeformableAttention3D(nn.Module):
    """Every head of every query samples a few points around its reference point on every level and weighs them.

    Starts as Deformable DETR does: point p of a head lies p + 1 steps from the reference point along the head's
    direction, on every level, whatever the query, and all points weigh the same. A step is a voxel of the level, or,
    around a reference box, its half side over `points`: so the last point lies on the box's surface.

    State: `sampling_offsets` (rows: head, level, point, then x, y, z), `attention_weights` (head, level, point),
    `value_proj` and `output_proj`, each with `weight` and `bias`.

    Args:
        dim: channels of queries and memory.
        heads: divides `dim`.
        levels: maps in memory.
        points: samples of a head on a level.
        directions: where heads start to look. "auto": 8 heads at a cube's corners, 6 along its axes, any other number
            on a Fibonacci sphere. "nndetection": on a curve of which no point has a negative y, as there.
        backend: of `fused_deformable_attention`.

    Raises:
        ValueError: a number below 1, a `dim` that `heads` does not divide, unknown directions or backend.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        levels: int = 4,
        points: int = 4,
        directions: Directions = "auto",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        for name, number in {"dim": dim, "heads": heads, "levels": levels, "points": points}.items():
            if number < 1:
                raise ValueError(f"{name} is {number}, wanted 1 or more")
        if dim % heads != 0:
            raise ValueError(f"dim is {dim}, wanted a multiple of the {heads} heads")
        check_backend(backend)
        self.dim, self.heads, self.levels, self.points, self.backend = dim, heads, levels, points, backend
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 3)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._initialise(head_directions_zyx(heads, directions))

    @torch.no_grad()
    def _initialise(self, directions_zyx: Float[Tensor, "h 3"]) -> None:
        for layer in (self.sampling_offsets, self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)
        steps = torch.arange(1, self.points + 1)[:, None]
        start = zyx_to_grid(directions_zyx)[:, None, None] * steps  # (h, 1, p, 3), the same for all levels
        self.sampling_offsets.bias.copy_(start.expand(-1, self.levels, -1, -1).flatten())

    def forward(
        self,
        query: Float[Tensor, "b q dim"],
        reference_points_zyx: Float[Tensor, "b q r"],
        memory: Float[Tensor, "b s dim"],
        spatial_shapes: Sequence[tuple[int, int, int]],
        valid: Bool[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b q dim"]:
        """Return what each query finds, projected; the sum with the query is the caller's.

        Args:
            query: with its position, if it has one.
            reference_points_zyx: (z, y, x) or a box (z, y, x, dz, dy, dx) by centre and sides, all in units of the
                whole patch, 0 and 1 its faces; float32 under autocast too.
            memory: the levels' voxels behind each other, each level row by row in z, y, x.
            spatial_shapes: (D, H, W) of each level.
            valid: False where memory is padding, which counts as zero after the projection, whatever it holds.

        Raises:
            ValueError: shapes, types or devices that do not fit.
        """
        if query.ndim != 3 or query.shape[-1] != self.dim:
            raise ValueError(f"query has shape {tuple(query.shape)}, wanted (batch, queries, {self.dim})")
        if memory.ndim != 3 or memory.shape[0] != query.shape[0] or memory.shape[-1] != self.dim:
            raise ValueError(f"memory has shape {tuple(memory.shape)}, wanted ({query.shape[0]}, voxels, {self.dim})")
        if len(spatial_shapes) != self.levels:
            raise ValueError(f"spatial_shapes has {len(spatial_shapes)} levels, the layer has {self.levels}")
        if valid is not None and (valid.shape != memory.shape[:2] or valid.dtype != torch.bool):
            found = f"{valid.dtype} of shape {tuple(valid.shape)}"
            raise ValueError(f"valid is {found}, wanted torch.bool of shape {tuple(memory.shape[:2])}")
        if valid is not None:
            memory = memory.masked_fill(~valid[..., None], 0.0)  # times zero a NaN would stay one, in the gradients too
        value = self.value_proj(memory)
        if valid is not None:
            value = value.masked_fill(~valid[..., None], 0.0)
        rows = (*query.shape[:2], self.heads, self.levels, self.points)
        attended = fused_deformable_attention(
            value.view(*memory.shape[:2], self.heads, self.dim // self.heads),
            spatial_shapes,
            zyx_to_grid(reference_points_zyx),
            self.sampling_offsets(query).view(*rows, 3),
            self.attention_weights(query).view(rows),
            backend=self.backend,
        )
        out: Tensor = self.output_proj(attended)
        return out

    def extra_repr(self) -> str:
        """Return what stands in the printed layer."""
        return f"dim={self.dim}, heads={self.heads}, levels={self.levels}, points={self.points}"


def zyx_to_grid(places_zyx: Float[Tensor, "*rows r"]) -> Float[Tensor, "*rows r"]:
    """Return (z, y, x) as (x, y, z), and (z, y, x, dz, dy, dx) as (x, y, z, dx, dy, dz); its own inverse.

    Raises:
        ValueError: the last axis is neither 3 nor 6.
    """
    if places_zyx.shape[-1:] not in ((3,), (6,)):
        raise ValueError(f"places have shape {tuple(places_zyx.shape)}, wanted (..., 3) or (..., 6)")
    triples = places_zyx.reshape(*places_zyx.shape[:-1], places_zyx.shape[-1] // 3, 3)
    return triples.flip(-1).reshape(places_zyx.shape)


def head_directions_zyx(heads: int, directions: Directions = "auto") -> Float[Tensor, "h 3"]:
    """Return where each head starts to look, its longest component 1.

    Raises:
        ValueError: unknown directions.
    """
    if directions not in DIRECTIONS:
        raise ValueError(f"directions is {directions!r}, wanted one of {', '.join(DIRECTIONS)}")
    rows: list[tuple[float, ...]]
    if directions == "nndetection":
        turns = [2 * math.pi * k / heads for k in range(heads)]
        rows = [(math.sin(t) * math.cos(t), math.sin(t) ** 2, math.cos(t)) for t in turns]
    elif heads == 8:
        rows = list(product((-1.0, 1.0), repeat=3))
    elif heads == 6:
        rows = [(0.0,) * axis + (sign,) + (0.0,) * (2 - axis) for axis in range(3) for sign in (-1.0, 1.0)]
    else:  # equal slices of a sphere, each a golden angle further
        heights = [1 - (2 * k + 1) / heads for k in range(heads)]
        rings = [(math.sqrt(1 - z * z), GOLDEN_ANGLE * k) for k, z in enumerate(heights)]
        rows = [(z, r * math.sin(t), r * math.cos(t)) for z, (r, t) in zip(heights, rings, strict=True)]
    vectors = torch.tensor(rows)
    return vectors / vectors.abs().amax(-1, keepdim=True)
