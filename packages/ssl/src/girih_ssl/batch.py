"""What every objective does first with a batch: check it, and make one generator per sample."""

from collections.abc import Collection

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from girih_ssl.interfaces import Batch, Triple


def check_batch(
    batch: Batch, *, requires: Collection[str], in_channels: int, patch_multiple: Triple
) -> Float[Tensor, "b c z y x"]:
    """Return `batch["image"]` of a batch that an objective can use.

    Looks at keys, shapes and dtypes only, never at values: reading a value back would stall a GPU.

    Args:
        batch: B samples of C channels.
        requires: keys that have to be there.
        in_channels: the wanted C.
        patch_multiple: what the patch has to be a multiple of along (z, y, x).

    Raises:
        ValueError: a key is missing; `image` is a list, empty, not floating, or has other channels or a patch that
            is no multiple; `seed` is not (B,) int64; `valid`, if there, is not (B, Z, Y, X) bool.
    """
    missing = sorted(set(requires) - set(batch))
    if missing:
        raise ValueError(f"batch lacks {', '.join(missing)}: found {sorted(batch)}, wanted {sorted(requires)}")
    image = batch["image"]
    if not isinstance(image, Tensor):
        raise ValueError(
            f"image: found a list of samples with {[int(x.shape[0]) for x in image]} channels, "
            f"wanted one tensor with {in_channels}"
        )
    if image.ndim != 5 or image.shape[0] == 0 or image.shape[1] != in_channels:
        raise ValueError(f"image: found shape {tuple(image.shape)}, wanted (B >= 1, {in_channels}, Z, Y, X)")
    if not image.is_floating_point():
        raise ValueError(f"image: found {image.dtype}, wanted a floating dtype (raw patches are to be dequantised)")
    check_patch((image.shape[2], image.shape[3], image.shape[4]), patch_multiple)
    if "seed" in batch:
        _check("seed", batch["seed"], (image.shape[0],), torch.int64)
    if "valid" in batch:
        _check("valid", batch["valid"], (image.shape[0], *image.shape[2:]), torch.bool)
    return image


def check_patch(patch_zyx: Triple, patch_multiple: Triple) -> None:
    """Raise ValueError unless every side of the patch is a positive multiple of its entry in `patch_multiple`."""
    if any(side < 1 or side % multiple for side, multiple in zip(patch_zyx, patch_multiple, strict=True)):
        raise ValueError(f"patch: found {patch_zyx} voxels (z, y, x), wanted multiples of {patch_multiple}")


def check_cells(patch_zyx: Triple, coarsest_stride: Triple) -> None:
    """Raise ValueError if the coarsest map of a patch is a single cell, which instance norm cannot normalise."""
    if all(side <= stride for side, stride in zip(patch_zyx, coarsest_stride, strict=True)):
        raise ValueError(
            f"patch: found {patch_zyx} voxels (z, y, x), wanted more than the encoder's coarsest stride "
            f"{coarsest_stride} along an axis: a single cell cannot be normalised"
        )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sample_generators(seed: Int64[Tensor, " b"], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """Return one generator per sample, so that a sample draws the same numbers in any batch, worker and rank.

    Draw on the CPU what has to be equal on every device; on a GPU the numbers are others. The CPU generator of torch
    keeps the low 32 bits of a seed, so only these matter.

    Args:
        seed: numbers >= 0; on a GPU, reading them waits for it.
        device: where the generators draw.
    """
    return [torch.Generator(device).manual_seed(number) for number in seed.tolist()]


def _check(name: str, found: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(found.shape) != shape or found.dtype != dtype:
        raise ValueError(f"{name}: found {tuple(found.shape)} {found.dtype}, wanted {shape} {dtype}")
