"""Multi-scale deformable attention in 3D by `grid_sample`, level by level: what everything else is held against.

    out[b, q, h] = sum over levels l and points p of  weight[b, q, h, l, p] * value_l[b, h](location[b, q, h, l, p])

This is equation 3 of Zhu et al. (2021, "Deformable DETR") with a third axis. A location is (x, y, z), 0 and 1 are the
outer faces of its level. Between voxel centres the value is trilinear, outside it is zero. A location with a NaN or an
infinity lies outside: it adds exactly zero and has zero gradients. Plain torch: differentiable, on any device.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FAR = 2.0**20  # in units of the whole level: farther out nothing is sampled, and the arithmetic cannot overflow


def deformable_attention_reference(
    value: Float[Tensor, "b s h c"],
    spatial_shapes: Sequence[tuple[int, int, int]],
    sampling_locations: Float[Tensor, "b q h l p 3"],
    attention_weights: Float[Tensor, "b q h l p"],
) -> Float[Tensor, "b q h*c"]:
    """Return the attended values in the value's dtype; computed in float64 for float64 values, else in float32.

    Args:
        value: the levels' voxels behind each other, each level row by row in z, y, x.
        spatial_shapes: (D, H, W) of each level, in voxels; their products add up to `s`.
        sampling_locations: (x, y, z), of any floating type.
        attention_weights: of any sign and sum.
    """
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    wide = wide_dtype(value)
    levels = torch.split(value.to(wide), [d * h * w for d, h, w in spatial_shapes], dim=1)
    locations, weights = sampling_locations.to(wide), attention_weights.to(wide)
    out = value.new_zeros((batch * heads, channels, queries), dtype=wide)
    for index, shape in enumerate(spatial_shapes):
        sampled = sample(planes(levels[index], shape), grid(locations[:, :, :, index]))
        weight = weights[:, :, :, index].transpose(1, 2).flatten(0, 1)  # (b, q, h, p) -> (b * h, q, p)
        out = out + (sampled * weight[:, None]).sum(-1)
    # (b * h, c, q) -> (b, q, h * c)
    return out.view(batch, heads, channels, queries).permute(0, 3, 1, 2).flatten(2).to(value.dtype)


def fused_deformable_attention_reference(
    value: Float[Tensor, "b s h c"],
    spatial_shapes: Sequence[tuple[int, int, int]],
    reference_points: Float[Tensor, "b q r"],
    offsets: Float[Tensor, "b q h l p 3"],
    logits: Float[Tensor, "b q h l p"],
) -> Float[Tensor, "b q h*c"]:
    """Return deformable attention whose weights are softmax(logits) over all levels and points of a head.

    Args:
        value: as in `deformable_attention_reference`.
        spatial_shapes: as in `deformable_attention_reference`.
        reference_points: (x, y, z) or (x, y, z, dx, dy, dz) in [0, 1].
        offsets: (x, y, z) in voxels of the level, or, with a size, in shares of size * 0.5 / points.
        logits: softmax is over l and p.
    """
    wide = wide_dtype(value)
    locations = sampling_locations(reference_points.to(wide), offsets.to(wide), spatial_shapes)
    return deformable_attention_reference(value, spatial_shapes, locations, softmax(logits, wide))


def sampling_locations(
    reference_points: Float[Tensor, "b q r"],
    offsets: Float[Tensor, "b q h l p 3"],
    spatial_shapes: Sequence[tuple[int, int, int]],
) -> Float[Tensor, "b q h l p 3"]:
    """Return point + offset / (W, H, D) of the level, or, for points with a size, centre + offset / p * size * 0.5.

    What would not be finite lies at -1, outside, and passes no gradient on.
    """
    centre, step = centre_and_step(reference_points, spatial_shapes, offsets.shape[-2])
    finite = (centre + offsets * step).isfinite()
    # each factor is masked, not the sum: its derivative by one is the other, and zero times infinity is not zero
    centre, offsets, step = (
        torch.where(finite, part, fill) for part, fill in ((centre, -1.0), (offsets, 0.0), (step, 0.0))
    )
    return centre + offsets * step


def centre_and_step(
    reference_points: Float[Tensor, "b q r"], spatial_shapes: Sequence[tuple[int, int, int]], points: int
) -> tuple[Float[Tensor, "b q 1 1 1 3"], Float[Tensor, "..."]]:
    """Return a and s of location = a + s * offset; s is that of each level, (l, 1, 3), or of each box, as a is."""
    boxes = reference_points[:, :, None, None, None]
    if boxes.shape[-1] == 6:
        return boxes[..., :3], boxes[..., 3:] * (0.5 / points)
    # filled on the device: a tensor made of a list would be copied there, and the host would wait
    voxels = [boxes.new_full((1,), 1 / extent) for shape in spatial_shapes for extent in reversed(shape)]
    return boxes, torch.cat(voxels).view(-1, 1, 3)


def softmax(logits: Float[Tensor, "b q h l p"], dtype: torch.dtype) -> Float[Tensor, "b q h l p"]:
    """Return the weights of all levels and points of a head, in `dtype`."""
    return logits.to(dtype).flatten(-2).softmax(-1).view_as(logits)


def wide_dtype(value: Tensor) -> torch.dtype:
    """Return the type in which it is computed: float32, or float64 for float64 values."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def planes(level: Float[Tensor, "b n h c"], shape: tuple[int, int, int]) -> Float[Tensor, "b*h c depth height width"]:
    """Return one level as images, one for each head."""
    batch, _, heads, channels = level.shape
    return level.permute(0, 2, 3, 1).reshape(batch * heads, channels, *shape)


def grid(locations: Float[Tensor, "b q h p 3"]) -> Float[Tensor, "b*h 1 q p 3"]:
    """Return locations of one level as `grid_sample` wants them: in [-1, 1], the heads in the batch."""
    finite = torch.where(locations.abs() < FAR, locations, -1.0)  # NaN compares as false
    return (2 * finite - 1).transpose(1, 2).flatten(0, 1)[:, None]


def sample(image: Float[Tensor, "n c d h w"], at: Float[Tensor, "n 1 q p 3"]) -> Float[Tensor, "n c q p"]:
    """Return the trilinear values at `at`, zero outside."""
    return F.grid_sample(image, at, mode="bilinear", padding_mode="zeros", align_corners=False)[:, :, 0]
