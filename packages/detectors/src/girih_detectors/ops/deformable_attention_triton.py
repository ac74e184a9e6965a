"""3D multi-scale deformable attention on Triton: launches the kernels of `deformable_attention_kernels.py`.

Four launchers that know no autograd: the tensors have been checked, what comes back is new. Nothing goes through the
host, so CUDA graphs can capture them once the kernels are compiled (at the first call).

Fused, they take offsets and logits for locations and weights. The softmax and the locations are computed in registers,
in the backward pass again, so that nothing but the inputs is kept between the two.

Deterministic, the gradient of the values is added up in int64, in multiples of a power of two found on the device from
the largest gradient and weight of the batch item, such that no sum can overflow: sums of integers do not depend on
their order.
"""

# mypy: disable-error-code="import-untyped, import-not-found"

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from .deformable_attention_kernels import attend, attend_backward
from .deformable_attention_reference import wide_dtype

INTERPRETED: bool = triton.knobs.runtime.interpret  # what the kernels' decorators obeyed, as it was at this import


class Config(NamedTuple):
    """How a kernel is launched, so that a thread moves 16 bytes at once if there are channels and queries enough."""

    queries: int
    """Of a tile, at most. With more of them Triton converts layouts through shared memory at every corner."""
    fewest_warps: int
    most_warps: int
    registers: int = 128
    """Of a thread, at most. Without a limit the assembler spills a few to fit one more block on a multiprocessor."""


# By kernel and bytes of the numbers it reads. Up to 4 levels of 4 points and 64 channels a head all of it compiles for
# sm_80 and sm_90 without spilling; of 4 levels of 8 points the fused gradients spill (seen: float32, and float64 with 8
# channels), and more than 32 points a head were not looked at.
CONFIGS = {
    ("forward", 2): Config(32, 1, 4),
    ("forward", 4): Config(16, 1, 4),
    ("forward", 8): Config(16, 1, 4, registers=168),
    ("backward", 4): Config(16, 2, 8),
    ("backward", 8): Config(8, 2, 8, registers=255),
    ("deterministic", 4): Config(16, 2, 8),
    ("deterministic", 8): Config(8, 2, 8, registers=255),
}


def settings(
    kernel: str, value_dtype: torch.dtype, cells: int, heads: int, channels: int, levels: int, points: int, form: int
) -> dict[str, Any]:
    """Return the constants and options that "forward", "backward" or "deterministic" is compiled with."""
    wide = value_dtype == torch.float64
    size = value_dtype.itemsize if kernel == "forward" or wide else 4
    config = CONFIGS[kernel, size]
    width = 8 if kernel == "deterministic" else size  # of a number that is moved most
    lanes = triton.next_power_of_2(channels)
    tile = max(1, min(config.queries, config.most_warps * 32 * 16 // width // lanes))
    found = {
        "heads": heads,
        "channels": channels,
        "levels": levels,
        "points": points,
        "form": form,
        "lanes": lanes,
        "tile": tile,
        "index": tl.int32 if cells * heads * channels < 2**31 else tl.int64,
        "real": tl.float64 if wide else tl.float32,
        "num_warps": min(max(config.fewest_warps, tile * lanes * width // 16 // 32), config.most_warps),
        "maxnreg": config.registers,
        "enable_fp_fusion": True,
    }
    if kernel != "forward":
        found["columns"] = max(8, triton.next_power_of_2(levels * points))
    return found


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

    Deterministic, the gradient of the value is the same to the bit in every run and for every order of the queries. A
    batch item's is NaN as a whole where one of its gradients or weights, or the product of the largest, is not finite.
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
        _launch(attend, "forward", (out, *map(_contiguous, inputs)), value, shapes, reference, places)
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
    real = wide_dtype(value)
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
            # a softmax is at most 1, and NaN if the largest of its logits is not finite
            weights = scores if reference is None else scores.amax((-1, -2)) * 0 + 1
            hits = places.shape[1] * places.shape[4]  # a point has eight cells, so it hits none twice
            scale = _scale(grad_output, weights, hits, real)
        grads = (grad_value, grad_places, grad_scores, grad_reference)
        inputs = (grad_output, value, places, scores, reference)
        kernel = "deterministic" if scale is not None else "backward"
        _launch(attend_backward, kernel, (*grads, *map(_contiguous, inputs), scale), value, shapes, reference, places)
    if grad_value is not None:
        if scale is not None:
            grad_value = grad_value.to(real).div_(scale[:, None, None, None])
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
    form = 0 if reference is None else reference.shape[-1]
    sizes = tuple(float(n) for shape in shapes for n in reversed(shape))  # integers are compiled anew for 1 and for 16
    found = settings(name, value.dtype, cells, heads, channels, levels, points, form)
    grid = (triton.cdiv(queries, found["tile"]) * heads * batch,)
    with torch.cuda.device(value.get_device()):  # a launch goes to the current device; -1, the CPU, changes nothing
        kernel[grid](*pointers, sizes, queries, cells, **found)


def _scale(gradient: Tensor, weights: Tensor, hits: int, real: torch.dtype) -> Float[Tensor, " b"]:
    """Of each item the largest power of two with which `hits` products stay below 2^62; NaN if one is not finite."""
    largest = torch.stack(
        [torch.linalg.vector_norm(part.flatten(1), torch.inf, 1, dtype=real) for part in (gradient, weights)]
    )
    exponent = torch.frexp(largest).exponent.sum(0)
    most = 1022 if real == torch.float64 else 126  # `real` holds the power and its inverse
    power = (62 - hits.bit_length() - exponent).clamp(-most, most)
    scale = ((power + 1023) << 52).view(torch.float64).to(real)
    return torch.where(torch.isfinite(largest.prod(0)), scale, torch.nan)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
