"""Limits that a header has to meet before voxels are read."""

from pathlib import Path
from typing import Literal

from girih_data3d.errors import ScanError

Frame = Literal["mean"] | int
"""Of a scan with a time axis: the mean over time, or one frame by number from 0."""

MAX_VOXELS = 2**31
"""8 GiB as float32; more than ten times a whole-body CT of 512 x 512 x 2000."""


def check_shape(path: Path, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """Return the three axes of a header's shape and the number of frames, trailing axes of length one dropped.

    Raises:
        ScanError: fewer than three or more than four axes, an empty axis, or more than 2**31 voxels in a frame.
    """
    axes = [int(n) for n in shape]
    while len(axes) > 3 and axes[-1] == 1:
        axes.pop()
    if len(axes) not in (3, 4):
        raise ScanError(f"{path}: shape {tuple(shape)} has {len(axes)} axes, wanted 3, or 4 with time last")
    if min(axes) < 1:
        raise ScanError(f"{path}: shape {tuple(axes)} has an empty axis")
    x, y, z, *frames = axes
    if x * y * z > MAX_VOXELS:
        raise ScanError(f"{path}: shape {(x, y, z)} is {x * y * z} voxels, wanted at most {MAX_VOXELS}")
    return (x, y, z), frames[0] if frames else 1


def choose_frames(path: Path, count: int, frame: Frame | None) -> range:
    """Return the frames to read (and average) of the `count` that a file has.

    Raises:
        ScanError: several frames, and none is chosen; or there is no such frame.
    """
    if frame is None and count > 1:
        raise ScanError(
            f'{path}: a fourth axis of {count} frames; wanted "frame" in dataset.json, "mean" or the number of one'
        )
    if frame is None or frame == "mean":
        return range(count)
    if not 0 <= frame < count:
        raise ScanError(f"{path}: no frame {frame}: the file has {count}, numbered from 0")
    return range(int(frame), int(frame) + 1)
