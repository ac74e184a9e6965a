"""Multi-scale deformable attention in 3D (Zhu et al., 2021, "Deformable DETR", equation 3) as two torch operators.

    out[b, q, h] = sum over levels l and points p of  weight[b, q, h, l, p] * value_l[b, h](location[b, q, h, l, p])

`deformable_attention` takes locations and weights; `fused_deformable_attention` makes them of reference points, offsets
and logits, inside, and so keeps less for the backward pass. Both are opaque to the compiler: one node of a
`torch.compile` or `torch.export` graph. They keep their inputs and nothing else, read nothing back from the device, and
have first derivatives. Triton runs them on CUDA; elsewhere it is `grid_sample`, level by level.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from . import deformable_attention_torch
from .backends import Backend, check_backend, triton_module

VALUE_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MOST_CELLS = 2**24  # of a level along an axis


def deformable_attention(
    value: Float[Tensor, "b s h c"],
    spatial_shapes: Sequence[tuple[int, int, int]],
    sampling_locations: Float[Tensor, "b q h l p 3"],
    attention_weights: Float[Tensor, "b q h l p"],
    *,
    backend: Backend = "auto",
) -> Float[Tensor, "b q h*c"]:
    """Return for every query and head the weighted sum of values at its locations, in the type of `value`.

    A value between voxel centres is trilinear, one outside its level is zero. A location with a NaN or an infinity adds
    exactly zero and has zero gradients, as long as values, weights and the gradient that comes in are finite. Sums are
    float32 (float64 for float64). Under autocast value and weights take its type.

    With `torch.use_deterministic_algorithms(True)` the gradients are the same to the bit in every run on a device;
    where that cannot be had (CUDA without Triton) torch raises. Triton then adds up the value's gradient in steps, for
    each batch item: about 2^-60 of (largest incoming gradient) * (largest weight) * queries * points, and never less
    than 1.2e-38 (2.2e-308 for float64). So what is below float32's smallest normal number is lost, and what is a
    thousand times as large keeps three digits. If one of these two, or their product, is not finite, the gradient of
    that item's values is NaN as a whole.

    Args:
        value: float32, bfloat16, float16 or float64; the levels behind each other, each row by row in z, y, x.
        spatial_shapes: (D, H, W) of each level in voxels, plain integers up to 2^24.
        sampling_locations: **(x, y, z)**, 0 and 1 are the outer faces of the level (the last axis is turned against
            boxes, `zyx_to_grid` does it); float32 always, float64 only with float64 values.
        attention_weights: any numbers, in the type of `value`.
        backend: "auto" is "triton" for CUDA tensors and "torch" for others; where Triton cannot be imported it is
            "torch" with a warning, once. "triton" never falls back; on the CPU it runs only under Triton's interpreter.

    Raises:
        ValueError: shapes, types or devices that do not fit, or an unknown backend; the message names both sides.
        ImportError: backend "triton" without Triton.
    """
    check_backend(backend)
    value, attention_weights = _autocast(value, attention_weights)
    extents = _check_levels(value, spatial_shapes)
    batch, _, heads, _ = value.shape
    levels = len(spatial_shapes)
    _check_shape("sampling_locations", sampling_locations, (batch, None, heads, levels, None, 3))
    _check_shape("attention_weights", attention_weights, sampling_locations.shape[:-1])
    sampling_locations = _check_places(value, "sampling_locations", sampling_locations)
    _check_type("attention_weights", attention_weights, value, value.dtype)
    out: Tensor = _attend(value, extents, sampling_locations, attention_weights, backend)
    return out


def fused_deformable_attention(
    value: Float[Tensor, "b s h c"],
    spatial_shapes: Sequence[tuple[int, int, int]],
    reference_points: Float[Tensor, "b q r"],
    offsets: Float[Tensor, "b q h l p 3"],
    logits: Float[Tensor, "b q h l p"],
    *,
    backend: Backend = "auto",
) -> Float[Tensor, "b q h*c"]:
    """Return `deformable_attention` at points moved by offsets, with weights softmax(logits) over l and p.

        location = point + offset / (W, H, D)  of the level, for points (x, y, z)
        location = centre + offset / p * size * 0.5, for boxes (x, y, z, dx, dy, dz) and p points

    Args:
        value: as in `deformable_attention`.
        spatial_shapes: as in `deformable_attention`.
        reference_points: **(x, y, z)** or **(x, y, z, dx, dy, dz)** in [0, 1]; float32 always, float64 only with
            float64 values.
        offsets: (x, y, z), in float32 or the type of `value`; autocast leaves them as they are. 16 bits round an offset
            to 1/256 (bfloat16) or 1/2048 (float16) of itself at most: 4 voxels to 1/64 or 1/512 of a voxel.
        logits: in the type of `value`; -infinity is a weight of zero.
        backend: as in `deformable_attention`.

    Raises:
        ValueError: shapes, types or devices that do not fit, or an unknown backend; the message names both sides.
        ImportError: backend "triton" without Triton.
    """
    check_backend(backend)
    value, logits = _autocast(value, logits)
    extents = _check_levels(value, spatial_shapes)
    batch, _, heads, _ = value.shape
    _check_shape("offsets", offsets, (batch, None, heads, len(spatial_shapes), None, 3))
    _check_shape("logits", logits, offsets.shape[:-1])
    entries = 6 if reference_points.shape[-1:] == (6,) else 3
    _check_shape("reference_points", reference_points, (*offsets.shape[:2], entries))
    reference_points = _check_places(value, "reference_points", reference_points)
    _check_type("offsets", offsets, value, torch.float32, value.dtype)
    _check_type("logits", logits, value, value.dtype)
    out: Tensor = _attend_fused(value, extents, reference_points, offsets, logits, backend)
    return out


@torch.library.custom_op("girih_detectors::deformable_attention", mutates_args=())
def _attend(value: Tensor, extents: Sequence[int], locations: Tensor, weights: Tensor, backend: str) -> Tensor:
    out: Tensor = _launchers(backend, value).forward(value, _shapes(extents), locations, weights)
    return out.contiguous()


@torch.library.custom_op("girih_detectors::deformable_attention_backward", mutates_args=())
def _attend_backward(
    gradient: Tensor,
    value: Tensor,
    extents: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    settings = {"needs": tuple(needs), "deterministic": torch.are_deterministic_algorithms_enabled()}
    found = _launchers(backend, value).backward(gradient, value, _shapes(extents), locations, weights, **settings)
    return [part.contiguous() for part in found if part is not None]


@torch.library.custom_op("girih_detectors::fused_deformable_attention", mutates_args=())
def _attend_fused(
    value: Tensor, extents: Sequence[int], points: Tensor, offsets: Tensor, logits: Tensor, backend: str
) -> Tensor:
    out: Tensor = _launchers(backend, value).fused_forward(value, _shapes(extents), points, offsets, logits)
    return out.contiguous()


@torch.library.custom_op("girih_detectors::fused_deformable_attention_backward", mutates_args=())
def _attend_fused_backward(
    gradient: Tensor,
    value: Tensor,
    extents: Sequence[int],
    points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    settings = {"needs": tuple(needs), "deterministic": torch.are_deterministic_algorithms_enabled()}
    found = _launchers(backend, value).fused_backward(
        gradient, value, _shapes(extents), points, offsets, logits, **settings
    )
    return [part.contiguous() for part in found if part is not None]


def _launchers(backend: str, value: Tensor) -> Any:
    """The module whose `forward`, `backward`, `fused_forward` and `fused_backward` do the work."""
    return triton_module("deformable_attention_triton", backend, value.device) or deformable_attention_torch


def _shapes(extents: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """The levels' (D, H, W); an operator takes a flat list."""
    return tuple(zip(extents[::3], extents[1::3], extents[2::3], strict=True))


@_attend.register_fake
@_attend_fused.register_fake
def _output(value: Tensor, extents: Sequence[int], places: Tensor, *others: Any) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, places.shape[1], heads * channels)


@_attend_backward.register_fake
@_attend_fused_backward.register_fake
def _gradients(gradient: Tensor, value: Tensor, extents: Sequence[int], *others: Any) -> list[Tensor]:
    *places, needs, _ = others
    wanted = zip((value, *places), needs, strict=True)
    return [torch.empty_like(part, memory_format=torch.contiguous_format) for part, needed in wanted if needed]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.extents, *places, ctx.backend = inputs
    ctx.save_for_backward(value, *places)


def _derivative(operator: Any) -> Any:
    """The autograd formula that calls `operator` for the gradients that are needed."""

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        value, *places = ctx.saved_tensors
        needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:-1]]
        found = iter(operator(gradient, value, ctx.extents, *places, needs, ctx.backend))
        of_value, *of_places = (next(found) if needed else None for needed in needs)
        return of_value, None, *of_places, None

    return backward


def _no_second_derivative(ctx: Any, *gradients: Any) -> None:
    raise NotImplementedError("deformable attention has no second derivative: call it without create_graph=True")


_attend.register_autograd(_derivative(_attend_backward), setup_context=_keep)
_attend_fused.register_autograd(_derivative(_attend_fused_backward), setup_context=_keep)
_attend_backward.register_autograd(_no_second_derivative)
_attend_fused_backward.register_autograd(_no_second_derivative)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's type where it is on for their device; float64 stays, as everywhere in torch."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def _check_levels(value: Tensor, spatial_shapes: Any) -> list[int]:
    """The extents of all levels in one list, if they make up `value`."""
    if value.ndim != 4:
        raise ValueError(f"value has shape {tuple(value.shape)}, wanted (batch, voxels, heads, channels)")
    if value.dtype not in VALUE_TYPES:
        raise ValueError(f"value is {value.dtype}, wanted one of {', '.join(map(str, VALUE_TYPES))}")
    if 0 in value.shape[2:]:
        raise ValueError(f"value has shape {tuple(value.shape)}, wanted one head and one channel or more")
    if isinstance(spatial_shapes, Tensor) or not all(map(_is_extents, spatial_shapes)) or len(spatial_shapes) == 0:
        raise ValueError(
            f"spatial_shapes is {spatial_shapes}, wanted one (D, H, W) or more, each of plain integers from 1 to 2^24: "
            "they are read on the host"
        )
    voxels = sum(d * h * w for d, h, w in spatial_shapes)
    if voxels != value.shape[1]:
        raise ValueError(f"value has {value.shape[1]} voxels, its levels {spatial_shapes} have {voxels}")
    return [extent for shape in spatial_shapes for extent in shape]


def _is_extents(shape: Any) -> bool:
    """A level's (D, H, W); the kernels are told of it in float32, which counts to 2^24."""
    known = isinstance(shape, Sequence) and len(shape) == 3
    return known and all(isinstance(n, (int, torch.SymInt)) and 1 <= n <= MOST_CELLS for n in shape)


def _check_shape(name: str, tensor: Tensor, wanted: Sequence[int | None]) -> None:
    """A wanted None stands for any number."""
    fits = tensor.ndim == len(wanted)
    if not fits or any(w is not None and n != w for n, w in zip(tensor.shape, wanted, strict=True)):
        sizes = ", ".join("any" if size is None else str(size) for size in wanted)
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, wanted ({sizes})")
    if 0 in tensor.shape[2:]:  # batch items and queries may be none
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, wanted one point or more")


def _check_places(value: Tensor, name: str, tensor: Tensor) -> Tensor:
    """The tensor, float64 for float64 values."""
    wanted = (torch.float32, torch.float64) if value.dtype == torch.float64 else (torch.float32,)
    why = ": 16 bits cannot tell neighbouring voxels apart, autocast leaves it alone too"
    _check_type(name, tensor, value, *wanted, why=why if tensor.itemsize == 2 else "")
    return tensor if tensor.dtype == wanted[-1] else tensor.to(wanted[-1])  # `to` would be a node of an exported graph


def _check_type(name: str, tensor: Tensor, value: Tensor, *wanted: torch.dtype, why: str = "") -> None:
    if tensor.dtype not in wanted:
        types = " or ".join(map(str, dict.fromkeys(wanted)))
        raise ValueError(f"{name} is {tensor.dtype}, wanted {types}, as value is {value.dtype}{why}")
    if tensor.device != value.device:
        raise ValueError(f"{name} is on {tensor.device}, wanted {value.device}, where value is")
