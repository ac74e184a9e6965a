"""One stem per dataset: images with different numbers of channels into the same stages, as MultiTalent trains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from girih_backbones.encoder import Encoder


class DatasetStems(nn.ModuleDict):
    """Stems by the name of their dataset; `encoder.stages(stems(images, datasets))` are the maps of a mixed batch.

    As the attribute `stems` of a network its tensors are called `stems.<dataset>.*`, which is how `save_weights` writes
    it and how `load_weights(..., stem="dataset:<name>")` finds one.
    """

    def forward(
        self, images: Sequence[Float[Tensor, "_ _ _ _"]], datasets: Sequence[str]
    ) -> Float[Tensor, "n c z y x"]:
        """Return the stems' outputs as one batch, for images (channels, z, y, x) of one shape but any channels.

        Raises:
            ValueError: a dataset has no stem, an image has other channels than its dataset, or the lists differ in
                length.
        """
        if len(images) != len(datasets) or not images:
            raise ValueError(f"datasets: found {len(datasets)} names for {len(images)} images, wanted one for each")
        return torch.cat([self._apply_one(image, name) for image, name in zip(images, datasets, strict=True)])

    def _apply_one(self, image: Tensor, dataset: str) -> Tensor:
        if dataset not in self:
            raise ValueError(f"dataset: found {dataset!r}, wanted one of {sorted(self)}")
        stem = self[dataset]
        wanted = image_channels(stem)
        if image.shape[0] != wanted:
            raise ValueError(f"image of {dataset!r}: found {image.shape[0]} channels, wanted {wanted}")
        out: Tensor = stem(image[None])
        return out


def make_stems(encoder: Encoder, channels: Mapping[str, int]) -> DatasetStems:
    """Return a freshly initialised stem of the encoder's kind for every dataset and its number of channels.

    Raises:
        ValueError: a name that cannot be part of the name of a tensor: empty, with a dot, or a method's; or a number of
            channels that is not a positive whole one.
    """
    stems = DatasetStems()
    for name, in_channels in channels.items():
        try:
            stems[name] = encoder.new_stem(in_channels)
        except KeyError as error:
            raise ValueError(f"dataset: found {name!r}, wanted another name: {error.args[0]}") from error
    return stems


def image_channels(stem: nn.Module) -> int:
    """Return the channels of the images that a stem takes: those of its first convolution.

    Raises:
        ValueError: there is no 3D convolution in it.
    """
    for part in stem.modules():
        if isinstance(part, nn.Conv3d):
            return part.in_channels
    raise ValueError(f"stem: found {type(stem).__name__} without a 3D convolution")
