"""The heads of one annotated dataset: from the neck's maps to the sums that its loss is made of."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from girih_ssl.interfaces import DatasetInfo, Triple
from girih_ssl.region_loss import RegionSums, membership, region_sums
from girih_ssl.supervision import at_strides

LARGEST_LABEL = 32767  # of int16, as which label maps are stored


class DatasetHeads(nn.ModuleDict):
    """One convolution of size 1 per supervised level, by the level's number, for the regions of one dataset.

    With softmax logit 0 is the background's and logit r + 1 that of region r; with sigmoid logit r is that of region r.

    Args:
        name: the dataset, for messages.
        info: its classes.
        channels: channels of the neck's map by supervised level, finest first.

    Raises:
        ValueError: `info` is not sound; names the dataset and the field.
    """

    members: Bool[Tensor, "r v"]

    def __init__(self, name: str, info: DatasetInfo, channels: Mapping[int, int]) -> None:
        check_dataset_info(name, info)
        outputs = len(info["regions"]) + (info["activation"] == "softmax")
        super().__init__({str(level): nn.Conv3d(width, outputs, kernel_size=1) for level, width in channels.items()})
        self.exclusive = info["activation"] == "softmax"
        self.register_buffer("members", membership(info["regions"]), persistent=False)

    def forward(
        self, maps: Mapping[int, Tensor], strides: Mapping[int, Triple], semantic: Int[Tensor, "n z y x"]
    ) -> RegionSums:
        """Return the sums of every level, stacked, for the maps (n, channels, z / stride, ...) by level, finest first.

        The logits of the finest are brought to the grid of `semantic`, trilinearly; for the others `semantic` is
        brought to their grid, see `at_strides`. A negative label is ignored, one that is in no region is background.

        The logits are not kept for the backward pass but computed again, a level at a time. Of a level it holds at most
        some 4.5 times the float32 logits at once: hand over few samples where classes and voxels are many.
        """
        finest = next(iter(maps))
        found = []
        for level, x in maps.items():
            labels = semantic if level == finest else at_strides(semantic, strides[level])
            if level != finest and x.shape[2:] != labels.shape[1:]:
                found_cells, wanted = tuple(x.shape[2:]), tuple(labels.shape[1:])
                raise ValueError(f"neck: found map {level} of {found_cells} cells, wanted {wanted} as its strides say")
            head = self[str(level)]  # its tensors are handed over, as functional_call may have changed them by then
            inputs = (x, head.weight, head.bias, labels, self.members, self.exclusive)
            found.append(checkpoint(_sums_on_grid, *inputs, use_reentrant=False, preserve_rng_state=False))
        entropy, voxels, overlap = (torch.stack(sums) for sums in zip(*found, strict=True))
        return RegionSums(entropy, voxels, overlap)

    def nothing(self) -> RegionSums:
        """Return the sums of no sample."""
        zeros = torch.zeros(len(self), 3, len(self.members), device=self.members.device)
        return RegionSums(zeros[:, 0, 0], zeros[:, 0, 0], zeros)


def check_dataset_info(name: str, info: DatasetInfo) -> None:
    """Raise ValueError unless what a dataset says of itself is sound."""
    where, fields = f"dataset {name!r}", sorted(DatasetInfo.__annotations__)
    if missing := sorted(set(fields) - set(info)):
        raise ValueError(f"{where} lacks {', '.join(missing)}: found {sorted(info)}, wanted {fields}")
    channels, classes, regions, activation = info["channels"], info["classes"], info["regions"], info["activation"]
    if type(channels) is not int or channels < 1:
        raise ValueError(f"{where}: found channels {channels!r}, wanted a whole number of 1 or more")
    if activation not in ("sigmoid", "softmax"):
        raise ValueError(f"{where}: found activation {activation!r}, wanted 'sigmoid' or 'softmax'")
    if not (_is_list(classes, str) and len(set(classes)) == len(classes)):
        raise ValueError(f"{where}: found classes {classes!r}, wanted a list of names, at least one and each once")
    if not (_is_list(regions, list) and len(regions) == len(classes)):
        raise ValueError(f"{where}: found regions {regions!r}, wanted a list of labels for each of {classes}")
    for title, region in zip(classes, regions, strict=True):
        if not (_is_list(region, int) and all(0 <= label <= LARGEST_LABEL for label in region)):
            raise ValueError(f"{where}, class {title!r}: found labels {region}, wanted some of 0 to {LARGEST_LABEL}")
    if activation == "softmax":
        for (first, a), (second, b) in combinations(zip(classes, regions, strict=True), 2):
            if shared := sorted(set(a) & set(b)):
                raise ValueError(
                    f"{where}: found the labels {shared} in both {first!r} and {second!r}, wanted none under softmax; "
                    "with sigmoid regions may overlap"
                )


def _is_list(value: Any, kind: type) -> bool:
    """Whether a value is a list of at least one item of a kind; True and False are no numbers."""
    return isinstance(value, list) and len(value) > 0 and all(type(item) is kind for item in value)


def _sums_on_grid(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, members: Tensor, exclusive: bool
) -> RegionSums:
    logits = F.conv3d(x, weight, bias).float()
    if logits.shape[2:] != labels.shape[1:]:
        logits = F.interpolate(logits, size=tuple(labels.shape[1:]), mode="trilinear", align_corners=False)
    return region_sums(logits, labels, members, exclusive=exclusive)
