"""Sparse masked modelling (S3D, SparkMAE): a CNN sees visible blocks only, and a decoder restores the others."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from girih_ssl.batch import check_batch
from girih_ssl.interfaces import Batch, Encoder, Parts
from girih_ssl.light_decoder import LightDecoder
from girih_ssl.masked_norm import Cells, masked_instance_norm
from girih_ssl.masking import blocks_of, check_blocks, common_multiple, draw_hidden_blocks, hidden_error, to_voxels
from girih_ssl.sparse import VisibleCells, bind, is_all_visible
from girih_ssl.sparse_check import check_sparse
from girih_ssl.voxel_head import VoxelHead


@dataclass(frozen=True)
class S3DConfig:
    """SparkMAE: restore hidden blocks, the encoder blind to them (Tian et al., ICLR 2023; in 3D: Wald et al., 2024)."""

    mask_ratio: float = 0.75
    """Share of the blocks that is hidden, in (0, 1); int(mask_ratio * blocks) of every sample."""
    block_zyx: tuple[int, int, int] = (16, 16, 16)
    """Voxels of a block along (z, y, x)."""
    decoder: str = "full"
    """"full": the U-Net decoder, with concatenated skips; "light": SparK's own, narrow and with added skips."""
    compat: str = "none"
    """"nnssl": the encoder's input is not masked, as in the public code, so that hidden voxels leak into the stem."""

    neck_maps = "finest"

    def __post_init__(self) -> None:
        check_blocks(self.mask_ratio, self.block_zyx)
        if self.decoder not in ("full", "light"):
            raise ValueError(f"decoder: found {self.decoder!r}, wanted 'full' or 'light'")
        if self.compat not in ("none", "nnssl"):
            raise ValueError(f"compat: found {self.compat!r}, wanted 'none' or 'nnssl'")

    def build(self, parts: Parts) -> "S3D":
        """Return the objective.

        Raises:
            ValueError: see `S3D`.
        """
        return S3D(parts, self)


class S3D(nn.Module):
    r"""Sparse masked modelling (Tian et al. 2023, "Designing BERT for Convolutional Networks", arXiv:2301.03580).

    With x the z-scored patch, h the mask of the hidden voxels, drawn as for the masked autoencoder, and E the encoder,
    every convolution and pooling of which is followed by a multiplication with the visibility of its grid and whose
    normalisations are over the visible cells (`girih_ssl.sparse`), the loss is that of the masked autoencoder,

        loss = sum h v (f(x (1 - h)) - x)^2 / sum h v,      f = head . decoder . densify . E,

    v being `batch["valid"]`, or 1. Densify, per map m_i with visibility s_i (Tian et al. 2023, section 3.2):

        d_i = project_i(s_i norm(m_i) + (1 - s_i) token_i)

    with a normalisation over the visible cells without weights and a learnt token of m_i's channels; project_i is the
    identity for the finest map and a 3^3 convolution for the others. In 3D: Wald et al. 2024, "Revisiting MAE
    pre-training for 3D medical image segmentation" (S3D; arXiv:2410.23132; CVPR 2025), and, with a hybrid encoder,
    Tang et al. 2024 ("HySparK"). The encoder that is exported is an ordinary dense one.

    A map that is coarser than the blocks along all axes is taken as visible everywhere and has no token, as the last
    map of ResEncL. Coarser along some axes only, a cell is visible if any block in it is.

    Published setting: 75 % hidden, blocks of 16^3 voxels, the U-Net decoder; SGD with Nesterov momentum 0.99, learning
    rate 1e-2 with polynomial decay (exponent 0.9), weight decay 3e-5, gradient norm clipped at 12, epochs of 250 steps.
    Eckstein et al. 2025 ("The Missing Piece: A Case for Pre-Training in 3D Medical Object Detection") train 4000 epochs
    on patches of 192^3 voxels with batch 12.

    Deviations from the public code of Wald et al. (nnssl):
        - The input is masked, as it is in SparK. There it is not, and the stem sees hidden voxels along the borders
          of visible blocks; `compat="nnssl"` does the same.
        - The samples of a batch may differ in visible cells; there these are gathered into one tensor.
        - There are no second copies of the encoder's weights, and no token that is never used.
        - The mean is over hidden elements, the mask follows from the seed, invalid voxels are left out: see `MAE`.
    and from SparK: instance normalisation, blocks that may be finer than the last map, 75 instead of 60 % hidden,
    targets that are not normalised per block, and by default a U-Net decoder, for which the projection of the finest
    map is the one that is left out. `decoder="light"` is SparK's, see `LightDecoder` (and its projections with it).

    A batch without a hidden valid voxel has loss 0 with gradient 0, and `scored` says so. Invalid voxels count in the
    normalisations. A constant patch is nothing special; NaN or infinity makes the loss NaN, also where it is hidden or
    invalid.

    Args:
        parts: the encoder, which becomes the objective's own, the neck of the full decoder, channels of the volumes.
        config: ratio, block, decoder.

    Raises:
        ValueError: `parts.patch_zyx` does not suit, see `masking.blocks_of`; or the encoder cannot be executed
            sparsely, see `check_sparse`.

    Attributes:
        requires: image and seed; `valid` is used if it is there.
        patch_multiple: least common multiple of the block and the encoder's coarsest stride.
    """

    requires = frozenset({"image", "seed"})

    def __init__(self, parts: Parts, config: S3DConfig | None = None) -> None:
        super().__init__()
        config = config or S3DConfig()
        encoder = parts.encoder
        self.encoder = encoder
        self.in_channels = parts.in_channels
        self.mask_ratio = config.mask_ratio
        self.block_zyx = config.block_zyx
        self.masks_input = config.compat == "none"
        self.coarsest_stride = encoder.strides[-1]
        self.patch_multiple = common_multiple(self.block_zyx, self.coarsest_stride)
        blocks_of(  # before the dry run, whose patch is two such multiples
            parts.patch_zyx,
            block_zyx=self.block_zyx,
            coarsest_stride=self.coarsest_stride,
            mask_ratio=self.mask_ratio,
        )
        self.inner_strides = check_sparse(encoder, config.block_zyx)
        is_light = config.decoder == "light"
        self.densify = nn.ModuleList(
            Densify(
                width,
                has_token=not is_all_visible(stride, config.block_zyx),
                project=nn.Identity() if is_light or level == 0 else nn.Conv3d(width, width, 3, padding=1),
            )
            for level, (width, stride) in enumerate(zip(encoder.channels, encoder.strides, strict=True))
        )
        self.decoder = LightDecoder(encoder.channels, encoder.strides) if is_light else parts.make_neck()
        self.head = VoxelHead(self.decoder.channels[0], parts.in_channels)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, and `scored`: the share of all voxels that the loss counted.

        Raises:
            ValueError: see `check_batch` and `masking.blocks_of`.
        """
        hiding = self._hide(batch)
        return hidden_error(self._restore(hiding), hiding.image, hiding.hidden, batch.get("valid"))

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> dict[str, Tensor]:
        """Return `input`, `shown` (hidden voxels 0) and `output`, all (B, C, Z, Y, X) float32.

        The output is the network's, everywhere; nothing trains it on visible voxels.

        Raises:
            ValueError: as `forward`.
        """
        hiding = self._hide(batch)
        shown = hiding.image * ~hiding.hidden
        return {"input": hiding.image.float(), "shown": shown.float(), "output": self._restore(hiding).float()}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # one interruption of the graph, not several
    def _hide(self, batch: Batch) -> "_Hiding":
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
        visible = VisibleCells(~blocks, self.block_zyx, {*self.inner_strides, *self.encoder.strides})
        return _Hiding(image, to_voxels(blocks, self.block_zyx), visible, bind(self.encoder, visible))

    def _restore(self, hiding: "_Hiding") -> Tensor:
        image = hiding.image * ~hiding.hidden if self.masks_input else hiding.image
        maps = hiding.encoder(image)
        dense = [
            densify(x, hiding.visible.on((x.shape[2], x.shape[3], x.shape[4])))
            for densify, x in zip(self.densify, maps, strict=True)
        ]
        output: Tensor = self.head(self.decoder(dense), tuple(image.shape[2:]))
        return output


class _Hiding(NamedTuple):
    """A batch of which some blocks are hidden."""

    image: Float[Tensor, "b c z y x"]
    """All of it."""
    hidden: Bool[Tensor, "b 1 z y x"]
    """The voxels not to be seen."""
    visible: VisibleCells
    """The cells of all maps that are."""
    encoder: Encoder
    """The encoder as it sees them."""


class Densify(nn.Module):
    """From a map of visible cells to a dense one: normalise it, put a learnt token into hidden cells, project.

    Args:
        channels: of the map.
        has_token: False for a map of which all cells are visible.
        project: what follows.
    """

    token: nn.Parameter | None

    def __init__(self, channels: int, has_token: bool, project: nn.Module) -> None:
        super().__init__()
        token = nn.init.trunc_normal_(torch.empty(1, channels, 1, 1, 1), std=0.02, a=-0.02, b=0.02)  # as SparK
        self.token = nn.Parameter(token) if has_token else None
        self.project = project

    def forward(self, x: Float[Tensor, "b c z y x"], cells: Cells | None) -> Float[Tensor, "b d z y x"]:
        """Return the dense map; `cells` are the visible ones, None if all are."""
        if cells is None or self.token is None:
            filled = F.instance_norm(x)
        else:
            filled = masked_instance_norm(x, cells).addcmul_(self.token.to(x.dtype), cells.hidden.to(x.dtype))
        out: Tensor = self.project(filled)
        return out
