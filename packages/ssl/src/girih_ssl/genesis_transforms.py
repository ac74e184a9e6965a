"""The corruptions of Models Genesis apart from the local shuffle: flips, an intensity curve, and painting with noise.

What is random is drawn by functions of its own, a few numbers on the CPU, so that they are the same for every device.
All else works on a patch of any number of channels on its device.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from girih_ssl.interfaces import Triple

Box = tuple[slice, slice, slice]
"""Voxels of a patch along (z, y, x); start and stop are never None."""
KNOTS = 4096
"""Steps of an intensity curve."""
MARGIN = 3
"""Voxels between a painted box and the border of the patch, at least (Zhou et al. 2021, public code)."""
SMALLEST_INSIDE = 8
"""Side of a patch from which on every box to be filled fits."""
SMALLEST_OUTSIDE = 14
"""Side of a patch from which on every box to be kept fits."""


def chance(generator: torch.Generator, probability: float) -> bool:
    """Return True with this probability."""
    return float(torch.rand((), generator=generator, dtype=torch.float64)) < probability


def value_range(
    patch: Float[Tensor, "c z y x"], valid: Bool[Tensor, "z y x"] | None
) -> tuple[Float[Tensor, "c 1 1 1"], Float[Tensor, "c 1 1 1"]]:
    """Return every channel's minimum and maximum over the valid voxels, without `valid` over all; 0 if there is none.

    NaN in a valid voxel makes both NaN.
    """
    least = most = patch
    if valid is not None:
        least, most = patch.masked_fill(~valid, torch.inf), patch.masked_fill(~valid, -torch.inf)
    low, high = least.amin((1, 2, 3), keepdim=True).float(), most.amax((1, 2, 3), keepdim=True).float()
    if valid is not None:
        low, high = (end.masked_fill(~valid.any(), 0) for end in (low, high))
    return low, high


def rescale_(patch: Float[Tensor, "c z y x"], low: Float[Tensor, "c 1 1 1"], high: Float[Tensor, "c 1 1 1"]) -> None:
    """Bring every channel to [0, 1], in place: `low` becomes 0, `high` 1.

    A channel whose ends are equal becomes 0. NaN or infinity as an end make it NaN in one voxel at least.
    """
    patch.sub_(low).div_(torch.where(high == low, torch.inf, high - low))


def draw_flips(generator: torch.Generator, probability: float, most: int) -> list[int]:
    """Return the axes of (c, z, y, x) to flip: at most `most` times, while there is the chance, any axis is turned."""
    flips: set[int] = set()
    for _ in range(most):
        if not chance(generator, probability):
            break
        flips ^= {_between(generator, 1, 3)}
    return sorted(flips)


def draw_curve(generator: torch.Generator, inverted_probability: float) -> Float[Tensor, " k"]:
    """Return the ordinates of a random cubic Bezier curve at the abscissae 0, 1 / KNOTS, ... 1.

    The curve goes from (0, 0) to (1, 1) with two control points uniform in the unit square, hence never down and never
    back. Inverted, the ordinates are taken from its other end, and it goes from (0, 1) to (1, 0).
    """
    x1, y1, x2, y2 = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    inverted = chance(generator, inverted_probability)
    t = torch.linspace(0, 1, KNOTS + 1, dtype=torch.float64)
    x, y = _cubic(t, x1, x2), _cubic(1 - t if inverted else t, y1, y2)
    after = torch.searchsorted(x, t).clamp(min=1, max=KNOTS)  # x[after - 1] <= t <= x[after]
    before = after - 1
    share = (t - x[before]) / (x[after] - x[before]).clamp(min=torch.finfo(x.dtype).tiny)
    return torch.lerp(y[before], y[after], share).float()


def bend(patch: Float[Tensor, "c z y x"], curve: Float[Tensor, " k"]) -> Float[Tensor, "c z y x"]:
    """Return the curve's ordinate at every value; values outside [0, 1] count as 0 or 1.

    A value is rounded to the nearest knot. So the result is the exact curve at an abscissa that is wrong by at most
    half a knot, 1 / 8192, and a rounding: half a HU for a range of 4000 HU.
    """
    knot = patch.clamp(0, 1).mul_(KNOTS).add_(0.5).to(torch.int32)
    knot.clamp_(0, KNOTS)  # NaN has become anything
    return curve.index_select(0, knot.flatten()).view(patch.shape)


def draw_boxes(
    generator: torch.Generator, patch_zyx: Triple, *, outside: bool, probability: float, most: int
) -> list[Box]:
    """Return the boxes to fill with noise, or those to keep when all `outside` of them is filled.

    At most `most`, each drawn with this probability if the one before was; the first to be kept always is. An axis of
    S voxels has sides of S // 6 to S // 3 to fill, S - 4 S // 7 to S - 3 S // 7 to keep, at MARGIN or more from its
    ends (Zhou et al. 2021, public code).

    Raises:
        ValueError: the patch has no room for a box: a side below SMALLEST_OUTSIDE or SMALLEST_INSIDE.
    """
    smallest = SMALLEST_OUTSIDE if outside else SMALLEST_INSIDE
    if min(patch_zyx) < smallest:
        raise ValueError(f"patch: found {patch_zyx} voxels (z, y, x), wanted at least {smallest} a side to paint")
    boxes: list[Box] = []
    while len(boxes) < most and ((outside and not boxes) or chance(generator, probability)):
        sides = [_between(generator, *_side_limits(s, outside)) for s in patch_zyx]
        starts = [_between(generator, MARGIN, s - side - MARGIN) for s, side in zip(patch_zyx, sides, strict=True)]
        z, y, x = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
        boxes.append((z, y, x))
    return boxes


def noise_like(patch: Float[Tensor, "c z y x"], generator: torch.Generator) -> Float[Tensor, "c z y x"]:
    """Return noise that is uniform in [0, 1] for every voxel and channel, on the device of patch and generator.

    The numbers are the middles of 2^16 steps: four of them are cut from one random integer, which takes a CPU a fifth
    of the time of as many floats.
    """
    quarter = torch.empty(-(-patch.numel() // 4), dtype=torch.int64, device=patch.device)
    quarter.random_(-(2**63), None, generator=generator)
    steps = quarter.view(torch.int16)[: patch.numel()].to(patch.dtype)
    return steps.mul_(2**-16).add_(0.5 + 2**-17).view(patch.shape)


def _cubic(t: Tensor, first: float, second: float) -> Tensor:
    return 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3


def _side_limits(side: int, outside: bool) -> tuple[int, int]:
    return (side - 4 * side // 7, side - 3 * side // 7) if outside else (side // 6, side // 3)


def _between(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
