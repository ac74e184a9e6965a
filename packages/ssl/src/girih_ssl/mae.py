"""Masked autoencoding of volumes: hide most blocks of a patch and restore their voxels from the rest."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from girih_ssl.batch import check_batch
from girih_ssl.interfaces import Batch, Encoder, Neck, Parts
from girih_ssl.masking import blocks_of, check_blocks, common_multiple, draw_hidden_blocks, hidden_error, to_voxels
from girih_ssl.voxel_head import VoxelHead


@dataclass(frozen=True)
class MAEConfig:
    """Restore the hidden blocks of a volume (He et al., CVPR 2022; in 3D and with a CNN: Wald et al., 2024)."""

    mask_ratio: float = 0.75
    """Share of the blocks that is hidden, in (0, 1); int(mask_ratio * blocks) of every sample."""
    block_zyx: tuple[int, int, int] = (16, 16, 16)
    """Voxels of a block along (z, y, x)."""

    neck_maps = "finest"

    def __post_init__(self) -> None:
        check_blocks(self.mask_ratio, self.block_zyx)

    def build(self, parts: Parts) -> "MAE":
        """Return the objective.

        Raises:
            ValueError: `parts.patch_zyx` does not suit, see `masking.blocks_of`.
        """
        blocks_of(
            parts.patch_zyx,
            block_zyx=self.block_zyx,
            coarsest_stride=parts.encoder.strides[-1],
            mask_ratio=self.mask_ratio,
        )
        return MAE(parts.encoder, parts.make_neck(), parts.in_channels, self)


class MAE(nn.Module):
    r"""Masked autoencoder on a U-Net (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners").

    With x the z-scored patch, h the mask (1 = hidden, constant on blocks, drawn per sample) and f = head . neck .
    encoder, the loss is the mean squared error of the hidden elements (He et al. 2022, section 3),

        loss = sum h v (f(x (1 - h)) - x)^2 / sum h v

    over samples, channels and voxels; v is `batch["valid"]`, or 1 without it. Hidden voxels are 0, the mean of a
    z-scored scan. The 3D CNN variant is that of Wald et al. 2024 ("Revisiting MAE pre-training for 3D medical image
    segmentation"; CVPR 2025): a residual encoder U-Net with its skip connections, no per-patch normalised target.

    Published setting: 75 % hidden (He et al. 2022, figure 5), blocks of 16^3 voxels, SGD with Nesterov momentum 0.99,
    learning rate 1e-2 with polynomial decay (exponent 0.9), weight decay 3e-5, gradient norm clipped at 12, epochs of
    250 steps. Eckstein et al. 2025 ("The Missing Piece: A Case for Pre-Training in 3D Medical Object Detection") train
    4000 epochs on patches of 192^3 voxels with batch 12.

    Deviations from the public code of Wald et al. (nnssl):
        - The mean is over hidden elements. There the sum over C channels is divided by the hidden voxels, which makes
          the loss C times as large; with one channel both are the same.
        - The mask of a sample follows from its seed. There it cannot be reproduced.
        - Invalid voxels are left out (there, defaced voxels only, and as an option).

    A batch without a hidden valid voxel has loss 0 with gradient 0, and `scored` says so. A constant patch is nothing
    special. NaN or infinity anywhere in a patch makes the loss NaN, never silently less: it is not searched for,
    because the answer would have to be waited for on a GPU. In several processes each divides by its own number of
    scored elements; these differ only where `valid` does.

    The neck's parameters should all lead to its finest map, as a U-Net decoder's do.

    Args:
        encoder: becomes the objective's own.
        neck: takes the encoder's maps; its finest map is read.
        in_channels: channels of the volumes.
        config: ratio and block.

    Attributes:
        requires: image and seed; `valid` is used if it is there.
        patch_multiple: least common multiple of the block and the encoder's coarsest stride.
    """

    requires = frozenset({"image", "seed"})

    def __init__(self, encoder: Encoder, neck: Neck, in_channels: int, config: MAEConfig | None = None) -> None:
        super().__init__()
        config = config or MAEConfig()
        self.encoder = encoder
        self.neck = neck
        self.head = VoxelHead(neck.channels[0], in_channels)
        self.in_channels = in_channels
        self.mask_ratio = config.mask_ratio
        self.block_zyx = config.block_zyx
        self.coarsest_stride = encoder.strides[-1]
        self.patch_multiple = common_multiple(self.block_zyx, self.coarsest_stride)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, and `scored`: the share of all voxels that the loss counted.

        Raises:
            ValueError: see `check_batch` and `masking.blocks_of`.
        """
        image, hidden = self._image_and_mask(batch)
        return hidden_error(self._restore(image, hidden), image, hidden, batch.get("valid"))

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> dict[str, Tensor]:
        """Return `input`, `shown` (hidden voxels 0) and `output`, all (B, C, Z, Y, X) float32.

        The output is the network's, everywhere: nothing trains it on visible voxels, where it is worse, as in figure 2
        of He et al. 2022.

        Raises:
            ValueError: as `forward`.
        """
        image, hidden = self._image_and_mask(batch)
        output = self._restore(image, hidden)
        return {"input": image.float(), "shown": (image * ~hidden).float(), "output": output.float()}

    def _image_and_mask(self, batch: Batch) -> tuple[Float[Tensor, "b c z y x"], Bool[Tensor, "b 1 z y x"]]:
        image = check_batch(
            batch, requires=self.requires, in_channels=self.in_channels, patch_multiple=self.patch_multiple
        )
        grid, hidden = blocks_of(
            (image.shape[2], image.shape[3], image.shape[4]),
            block_zyx=self.block_zyx,
            coarsest_stride=self.coarsest_stride,
            mask_ratio=self.mask_ratio,
        )
        blocks = draw_hidden_blocks(batch["seed"], grid, hidden).to(image.device, non_blocking=True)
        return image, to_voxels(blocks, self.block_zyx)

    def _restore(self, image: Tensor, hidden: Tensor) -> Tensor:
        output: Tensor = self.head(self.neck(self.encoder(image * ~hidden)), tuple(image.shape[2:]))
        return output
