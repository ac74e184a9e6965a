"""The numbers that fix an encoder: channels, downsampling, kernels and depth of every stage, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import TypeAlias

LARGEST = 2**20  # of any one number, and
MOST_UNITS = 1000  # in one network: far above any real one, so that a corrupt description cannot hang a reader

Triple: TypeAlias = tuple[int, int, int]
Triples: TypeAlias = tuple[Triple, ...]


@dataclass(frozen=True)
class Topology:
    """One entry per stage, finest first; triples are (z, y, x).

    `downsampling[i]` is the step of stage i relative to the stage before, `strides[i]` its voxels per cell.
    """

    channels: tuple[int, ...]
    downsampling: Triples
    kernels: Triples
    depth: tuple[int, ...]

    @property
    def strides(self) -> Triples:
        """Voxels of the input per cell of every stage: the running product of `downsampling`."""
        strides: list[Triple] = []
        z, y, x = 1, 1, 1
        for step in self.downsampling:
            z, y, x = z * step[0], y * step[1], x * step[2]
            strides.append((z, y, x))
        return tuple(strides)


def make_topology(
    channels: Sequence[int],
    downsampling: Sequence[Sequence[int]] | None,
    kernels: Sequence[Sequence[int]] | None,
    depth: Sequence[int],
    *,
    depth_name: str,
) -> Topology:
    """Return the checked topology; `downsampling` None is 1 in the first stage and 2 after, `kernels` None is 3.

    Raises:
        ValueError: lengths differ, an entry is not a positive whole number, or a kernel is even.
    """
    widths = positive_integers("channels", channels)
    n = len(widths)
    if n == 0:
        raise ValueError("channels: found no stage, wanted at least one")
    steps = ((1, 1, 1),) + ((2, 2, 2),) * (n - 1) if downsampling is None else triples("downsampling", downsampling, n)
    sizes = ((3, 3, 3),) * n if kernels is None else triples("kernels", kernels, n)
    for stage, size in enumerate(sizes):
        if any(k % 2 == 0 for k in size):
            raise ValueError(f"kernels[{stage}]: found {size}, wanted odd sizes, which keep a map's shape")
    depths = positive_integers(depth_name, depth)
    if len(depths) != n:
        raise ValueError(f"{depth_name}: found {len(depths)} entries, wanted one for each of the {n} channels")
    if sum(depths) > MOST_UNITS:
        raise ValueError(f"{depth_name}: found {sum(depths)} in total, wanted at most {MOST_UNITS}")
    return Topology(widths, steps, sizes, depths)


def check_patch(patch_zyx: Sequence[int], strides: Triples) -> None:
    """Refuse a patch (voxels) that the coarsest of `strides` does not divide or leaves with a single cell.

    Instance normalisation needs more than one cell: one cell normalises to zero.

    Raises:
        ValueError: says which patch was found and which would do.
    """
    total = strides[-1]
    if any(size % stride or size == 0 for size, stride in zip(patch_zyx, total, strict=True)):
        nearest = tuple(max(1, -(-size // stride)) * stride for size, stride in zip(patch_zyx, total, strict=True))
        raise ValueError(
            f"patch: found {tuple(patch_zyx)} voxels, wanted multiples of the total stride {total}, e.g. {nearest}"
        )
    if tuple(patch_zyx) == total:
        raise ValueError(
            f"patch: found {tuple(patch_zyx)} voxels, which is a single cell at the total stride {total}; "
            "instance normalisation needs more, wanted at least one axis twice as long"
        )


def triples(name: str, values: Sequence[Sequence[int]], n: int) -> Triples:
    """Return `values` as n triples of positive whole numbers, or raise ValueError naming `name`."""
    rows = [positive_integers(f"{name}[{i}]", value) for i, value in enumerate(values)]
    if len(rows) != n:
        raise ValueError(f"{name}: found {len(rows)} entries, wanted one for each of the {n} stages")
    result: list[Triple] = []
    for i, row in enumerate(rows):
        if len(row) != 3:
            raise ValueError(f"{name}[{i}]: found {row}, wanted three numbers (z, y, x)")
        result.append((row[0], row[1], row[2]))
    return tuple(result)


def positive_integers(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Return `values` as a tuple of whole numbers of at least 1, or raise ValueError naming `name`."""
    try:
        result = tuple(index(value) for value in values)
    except TypeError as error:
        raise ValueError(f"{name}: found {values!r}, wanted whole numbers") from error
    if not all(1 <= value <= LARGEST for value in result):
        raise ValueError(f"{name}: found {result}, wanted 1 to {LARGEST} everywhere")
    return result
