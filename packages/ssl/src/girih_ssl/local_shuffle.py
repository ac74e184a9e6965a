"""Local shuffling of a volume: thousands of small overlapping windows, in each of them the voxels change places.

The rule is sequential: one window after the other is read from the original, permuted and written, so that where they
overlap the last one wins. Here all voxels are done at once: each finds the last window that covers it, then its place
in that window's permutation, then the voxel that the permutation brings there.

Voxels, rows and the places in a window are counted with x fastest, then y, then z.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from girih_ssl.genesis_transforms import Box
from girih_ssl.interfaces import Triple

SHARE = 10
"""An axis of S voxels has windows of at most S // 10 (Zhou et al. 2021, public code)."""
MOST_VOXELS = 2**27
"""Of a patch: below it, offsets in a window are exact in float32."""


@dataclass(frozen=True)
class Windows:
    """The windows of one sample in the order in which they are written, and their permutations; on the CPU.

    Place j of window w gets the voxel that was at place permutations[first[w] + j].
    """

    starts: Int64[Tensor, "3 w"]
    """First voxel along (z, y, x)."""
    sides: Int64[Tensor, "3 w"]
    """Voxels along (z, y, x)."""
    first: Int64[Tensor, " w"]
    """Where the window's permutation begins."""
    permutations: Int64[Tensor, " p"]
    """For every size of window, in voxels, one permutation, twice in a row: any run of that length is one too."""


def draw_windows(generator: torch.Generator, patch_zyx: Triple, count: int) -> Windows:
    """Draw windows with sides uniform in 1..S // 10 along an axis of S voxels, and uniform positions inside the patch.

    Drawing a permutation for each of 10,000 windows would take longer than all the rest. So one is drawn for every size
    in voxels, and each window of this size reads it from a random place on, round to its beginning. A window alone has
    any permutation equally likely, up to the rounding of that place; windows of one size are not independent, and a
    size of n voxels has at most n permutations in a sample. In a patch of 64^3 the windows of more than one voxel,
    about 9,950 of 10,000, have at most 2,219 permutations between them, the rotations of 39.

    Raises:
        ValueError: a side of the patch is below 10, or it has more than 2^27 voxels.
    """
    if min(patch_zyx) < SHARE or patch_zyx[0] * patch_zyx[1] * patch_zyx[2] > MOST_VOXELS:
        raise ValueError(
            f"patch: found {patch_zyx} voxels (z, y, x), wanted at least {SHARE} a side and at most {MOST_VOXELS} "
            f"together to shuffle"
        )
    patch = torch.tensor(patch_zyx)[:, None]
    numbers = torch.randint(2**31, (7, count), generator=generator)  # remainders are uniform to 1e-4
    sides = 1 + numbers[:3] % (patch // SHARE)
    starts = numbers[3:6] % (patch + 1 - sides)
    size = sides.prod(0)
    sizes = size.bincount().nonzero()[:, 0]
    drawn = [torch.randperm(n, generator=generator) for n in sizes.tolist()]
    before = 2 * (sizes.cumsum(0) - sizes)
    first = before[torch.searchsorted(sizes, size)] + numbers[6] % size
    return Windows(starts, sides, first, torch.cat([copy for one in drawn for copy in (one, one)]))


def touching(windows: Windows, boxes: Sequence[Box]) -> Windows:
    """Return the windows that share a voxel with any of the boxes; inside of these, the others change nothing."""
    touched = torch.zeros_like(windows.first, dtype=torch.bool)
    stops = windows.starts + windows.sides
    for box in boxes:
        start, stop = torch.tensor([(part.start, part.stop) for part in box])[..., None].unbind(1)
        touched |= ((windows.starts < stop) & (stops > start)).all(0)
    return replace(
        windows, starts=windows.starts[:, touched], sides=windows.sides[:, touched], first=windows.first[touched]
    )


class Shuffle:
    """The shuffle of one patch, piece by piece.

    Args:
        windows: in the order in which they are written.
        patch_zyx: voxels of the patch.
        device: of the patch.
    """

    def __init__(self, windows: Windows, patch_zyx: Triple, device: torch.device) -> None:
        self._last = last_windows(windows, patch_zyx).to(device)
        self._columns, self._permutations = _lookup(windows, patch_zyx, device)

    def __call__(self, patch: Float[Tensor, "c z y x"], piece: Box) -> Float[Tensor, "c dz dy dx"]:
        """Return a piece of the patch with the voxels of every window permuted, the same way in all channels."""
        source = self.source_voxels(piece)
        return torch.stack([values.index_select(0, source.view(-1)).view(source.shape) for values in patch.flatten(1)])

    def source_voxels(self, piece: Box) -> Int32[Tensor, "dz dy dx"]:
        """Return the voxel of the patch that every voxel of a piece takes its value from."""
        _, height, width = self._last.shape
        last = self._last[piece].contiguous()
        layer, row, place, corner = (
            column.index_select(0, last.view(-1)).view(last.shape) for column in self._columns.unbind()
        )
        z, y, x = (torch.arange(part.start, part.stop, dtype=torch.int32, device=last.device) for part in piece)
        place.addcmul_(layer, z[:, None, None]).addcmul_(row, y[:, None]).add_(x)
        source = self._permutations.index_select(0, place.view(-1)).view(last.shape)
        # Float division is several times faster than integer division, and of such small integers its floor is exact.
        voxels = layer.float()
        dz = (source / voxels).floor_()
        source.addcmul_(dz, voxels, value=-1)
        voxels = row.float()
        dy = (source / voxels).floor_()
        source.addcmul_(dy, voxels, value=-1)
        source.add_(dz, alpha=height * width).add_(dy, alpha=width)
        return corner.add_(source.to(torch.int32))


def last_windows(windows: Windows, patch_zyx: Triple) -> Int32[Tensor, "z y x"]:
    """Return for every voxel which window was the last to write it, on the CPU.

    Every row of the volume counts as a window too, one that leaves it as it is: these come first, one per (z, y), then
    the windows. So a voxel outside all windows has the number z * Y + y, and window w the number Z * Y + w.

    A plain loop in NumPy, about 2 microseconds a window: a patch for a GPU waits for it, and for the copy. Marking all
    windows at once, with tensors, takes ten times the lines and on a CPU no less time.
    """
    n_rows = patch_zyx[0] * patch_zyx[1]
    last = np.arange(n_rows, dtype=np.int32).repeat(patch_zyx[2]).reshape(patch_zyx)
    corners = torch.cat((windows.starts, windows.starts + windows.sides)).numpy()
    for number, (z, y, x, z1, y1, x1) in enumerate(corners.T.tolist(), start=n_rows):
        last[z:z1, y:y1, x:x1] = number
    return torch.from_numpy(last)


def _lookup(
    windows: Windows, patch_zyx: Triple, device: torch.device
) -> tuple[Int32[Tensor, "4 n"], Float[Tensor, " p"]]:
    """Return voxels of a layer, voxels of a row, first place and first voxel by window number; and the permutations.

    The first place is such that voxel (z, y, x) of the patch is at place first + z * layer + y * row + x. The rows of
    the volume are windows of one row, with the identity in front of all other permutations.
    """
    depth, height, width = patch_zyx
    nth = torch.arange(depth * height)
    volume_rows = torch.stack((nth // height, nth % height, torch.zeros_like(nth)))
    z, y, x = torch.cat((volume_rows, windows.starts), 1)
    row = torch.cat((torch.full_like(nth, width), windows.sides[2]))
    layer = torch.cat((torch.full_like(nth, width), windows.sides[1] * windows.sides[2]))
    first = torch.cat((torch.zeros_like(nth), width + windows.first))
    columns = torch.stack((layer, row, first - z * layer - y * row - x, (z * height + y) * width + x))
    permutations = torch.cat((torch.arange(width), windows.permutations))
    return columns.to(device, torch.int32), permutations.to(device, torch.float32)
