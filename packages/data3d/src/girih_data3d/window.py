"""Read windows that may lie partly or wholly outside an array."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from girih_data3d.resampling import Number

Triplet = tuple[int, int, int]


@runtime_checkable
class Reader(Protocol):
    """An array of which windows can be read."""

    case_id: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read_into(
        self, out: Shaped[np.ndarray, "*window"], start: tuple[int, ...], *, scale: Number = 1, offset: Number = 0
    ) -> None:
        """Fill `out`, of any type, with the window of its shape at `start` in the array: value * scale + offset."""


def read_padded(
    reader: Reader,
    start: Triplet,
    size: Triplet,
    *,
    padding: Number,
    dtype: Any = None,
    scale: Number = 1,
    offset: Number = 0,
) -> Shaped[np.ndarray, "*shape"]:
    """Return the window of `size` at `start` (z, y, x), with all leading axes: stored value * scale + offset.

    Outside the array stands `padding`, as it is.

    Raises:
        ValueError: an empty size.
        CorruptCaseError: from the reader.
    """
    if min(size) < 1:
        raise ValueError(f"case {reader.case_id!r}: patch size {size}, wanted at least one voxel per axis")
    lead, spatial = reader.shape[:-3], reader.shape[-3:]
    low = tuple(max(0, a) for a in start)
    high = tuple(min(n, a + s) for a, s, n in zip(start, size, spatial, strict=True))
    kind = reader.dtype if dtype is None else np.dtype(dtype)
    inside = tuple(b - a for a, b in zip(low, high, strict=True))
    if inside == tuple(size):
        out = np.empty((*lead, *size), kind)
        reader.read_into(out, (*(0 for _ in lead), *low), scale=scale, offset=offset)
        return out
    out = np.full((*lead, *size), padding, kind)
    if min(inside) > 0:
        z, y, x = (slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
        reader.read_into(out[..., z, y, x], (*(0 for _ in lead), *low), scale=scale, offset=offset)
    return out
