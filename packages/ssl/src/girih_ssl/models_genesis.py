"""Models Genesis: restore a volume that was shuffled, bent in its intensities and painted over."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from girih_ssl import genesis_transforms as transforms
from girih_ssl.batch import check_batch, check_patch, sample_generators
from girih_ssl.genesis_transforms import Box
from girih_ssl.interfaces import Batch, Encoder, Neck, Parts, Triple
from girih_ssl.local_shuffle import SHARE, Shuffle, draw_windows, touching
from girih_ssl.voxel_head import VoxelHead

SLAB = 2**18
"""Voxels that a CPU corrupts at a time, about: one megabyte of float32."""


@dataclass(frozen=True)
class ModelsGenesisConfig:
    """Restore a corrupted volume (Zhou et al., Medical Image Analysis 2021). A probability of 0 turns a part off."""

    flip_probability: float = 0.4
    """Of a flip along a random axis, and of each further one."""
    max_flips: int = 3
    """Most flips of a sample."""
    shuffle_probability: float = 0.5
    """Of shuffling voxels inside small windows."""
    shuffle_windows: int = 10_000
    """Windows of a shuffled sample, each with sides from 1 to a tenth of the patch's."""
    curve_probability: float = 0.9
    """Of sending the intensities through a random Bezier curve."""
    inverted_share: float = 0.5
    """Share of the curves that go down."""
    paint_probability: float = 0.9
    """Of painting noise over a part of the patch."""
    inpaint_share: float = 0.2
    """Share of the painted samples where boxes are filled; in the others everything outside of boxes is."""
    box_probability: float = 0.95
    """Of each further box."""
    max_boxes: int = 5
    """Most boxes of a sample."""
    compat: str = "none"
    """"none": every channel of a patch is brought to [0, 1] first; "nnssl": z-scored intensities are taken as if they
    were in [0, 1], as the public code of Wald et al. does."""

    neck_maps = "finest"

    def __post_init__(self) -> None:
        for name in ("flip", "shuffle", "curve", "paint", "box"):
            _check_share(f"{name}_probability", getattr(self, f"{name}_probability"))
        _check_share("inverted_share", self.inverted_share)
        _check_share("inpaint_share", self.inpaint_share)
        for name, least in (("max_flips", 0), ("shuffle_windows", 1), ("max_boxes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: found {getattr(self, name)}, wanted {least} or more")
        if self.compat not in ("none", "nnssl"):
            raise ValueError(f"compat: found {self.compat!r}, wanted 'none' or 'nnssl'")

    def build(self, parts: Parts) -> "ModelsGenesis":
        """Return the objective.

        Raises:
            ValueError: `parts.patch_zyx` is no multiple of `patch_multiple`, or too small for the corruptions.
        """
        genesis = ModelsGenesis(parts.encoder, parts.make_neck(), parts.in_channels, self)
        genesis.check_patch(parts.patch_zyx)
        return genesis


class ModelsGenesis(nn.Module):
    r"""Restoration of corrupted patches by a U-Net (Zhou et al. 2021, "Models Genesis", Medical Image Analysis 67).

    With y the patch, flipped at random and brought to [0, 1], g the corruption and f = head . neck . encoder, the loss
    is the mean squared error of all elements, corrupted or not (Zhou et al. 2021, section 3),

        loss = sum v (f(g(y)) - y)^2 / sum v,    g = paint . curve . shuffle

    over samples, channels and voxels; v is `batch["valid"]`, or 1 without it. The corruptions of a sample, each with
    its own probability and in this order:

    - shuffle (0.5): 10,000 windows with sides from 1 to S // 10 on an axis of S voxels; the voxels of each are
      permuted, all from the original; where windows overlap the last one stays.
    - curve (0.9): intensities through a Bezier curve from (0, 0) to (1, 1) with two random control points, which is
      monotone; half of the curves are inverted and go from (0, 1) to (1, 0).
    - paint (0.9): uniform noise, either (0.2) in up to 5 boxes with sides from S // 6 to S // 3, or everywhere but in
      1 to 5 boxes with sides from S - 4 S // 7 to S - 3 S // 7.

    Flips come first (0.4 for the first, then for a second and a third) and belong to the target too. All numbers of a
    sample follow from its seed and are drawn on the CPU, but for the painted noise, which is drawn on the device from a
    generator of the sample's own.

    Published setting (Zhou et al. 2021, public code): chest CT clipped to -1000..1000 HU and brought to [0, 1], patches
    of 64 x 64 x 32, SGD with learning rate 1 and momentum 0.9, halved when it stagnates, batch 6. Eckstein et al. 2025
    ("The Missing Piece: A Case for Pre-Training in 3D Medical Object Detection") use the code of Wald et al. (nnssl) on
    a residual encoder U-Net: SGD with Nesterov momentum 0.99, learning rate 1e-2 with polynomial decay (exponent 0.9),
    weight decay 3e-5; patches of 160^3 by default.

    Deviations from the public code (nnssl, which has the transforms of Zhou et al.):
        - Every channel of a patch is brought to [0, 1] by its minimum and maximum over the valid voxels, which the
          transforms assume: the curve is constant outside [0, 1], and the noise is in it. There the intensities are
          z-scored, so that the curve saturates most voxels and the target is on another scale than what is shown;
          `compat="nnssl"` does so. Either way the network should not depend on the scale of what it is shown: it is
          fine-tuned on z-scored patches. The usual instance norm after the first convolution sees to that.
        - All channels are shuffled, with the same windows. There only the first is.
        - Windows with equally many voxels share a permutation up to rotation; see `draw_windows`.
        - A curve has 4097 knots and the nearest is taken; there 100,000 and interpolation. See `apply_curve`.
        - Boxes are filled with other noise in every channel, of 2^16 levels. There all channels have the same.
        - The corruption of a sample follows from its seed. There it cannot be reproduced.
        - Invalid voxels are left out of the loss and of a channel's range, into which they are clamped.

    A batch without a valid voxel has loss 0 with gradient 0, and `scored` says so. A channel that is constant over the
    valid voxels, or has none, becomes 0 everywhere. NaN or infinity in a valid voxel makes the loss NaN, never silently
    less: it is not searched for, because the answer would have to be waited for on a GPU. In several processes each
    divides by its own number of scored elements; these differ only where `valid` does.

    The neck's parameters should all lead to its finest map, as a U-Net decoder's do.

    Args:
        encoder: becomes the objective's own.
        neck: takes the encoder's maps; its finest map is read.
        in_channels: channels of the volumes.
        config: probabilities and counts.

    Attributes:
        requires: image and seed; `valid` is used if it is there.
        patch_multiple: the encoder's coarsest stride. A side is at least `smallest_side`, 14 by default.
    """

    requires = frozenset({"image", "seed"})
    own_augmentation = True

    def __init__(
        self, encoder: Encoder, neck: Neck, in_channels: int, config: ModelsGenesisConfig | None = None
    ) -> None:
        super().__init__()
        self.config = config or ModelsGenesisConfig()
        self.encoder = encoder
        self.neck = neck
        self.head = VoxelHead(neck.channels[0], in_channels)
        self.in_channels = in_channels
        self.patch_multiple = encoder.strides[-1]
        self.smallest_side = _smallest_side(self.config)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, and `scored`: the share of all voxels that the loss counted.

        Raises:
            ValueError: see `check_batch`; or the patch is too small for the corruptions.
        """
        shown, target, valid = self._pairs(batch)
        output = self._restore(shown)
        n_scored = valid.sum()
        error = (output.float() - target) * valid
        loss = error.square().sum() / (n_scored * self.in_channels).clamp(min=1)
        return {"loss": loss, "scored": n_scored / valid.numel()}

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> dict[str, Tensor]:
        """Return `input` (the target: flipped, in [0, 1]), `shown` and `output`, all (B, C, Z, Y, X) float32.

        Raises:
            ValueError: as `forward`.
        """
        shown, target, _ = self._pairs(batch)
        return {"input": target, "shown": shown.float(), "output": self._restore(shown).float()}

    def check_patch(self, patch_zyx: Triple) -> None:
        """Raise ValueError unless the patch is a multiple of `patch_multiple`, and no side below `smallest_side`."""
        check_patch(patch_zyx, self.patch_multiple)
        if min(patch_zyx) < self.smallest_side:
            raise ValueError(
                f"patch: found {patch_zyx} voxels (z, y, x), wanted at least {self.smallest_side} a side for the "
                f"corruptions"
            )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _pairs(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "b c z y x"], Float[Tensor, "b c z y x"], Bool[Tensor, "b 1 z y x"]]:
        """Return what is shown (dtype of the image), the target (float32) and the valid voxels, all flipped alike."""
        image = check_batch(
            batch, requires=self.requires, in_channels=self.in_channels, patch_multiple=self.patch_multiple
        )
        self.check_patch((image.shape[2], image.shape[3], image.shape[4]))
        shown, target, flips = corrupt(image, batch["seed"], self.config, batch.get("valid"))
        valid = batch["valid"] if "valid" in batch else torch.ones_like(image[:, 0], dtype=torch.bool)
        valid = torch.stack([mask[None].flip(axes) for mask, axes in zip(valid, flips, strict=True)])
        return shown.to(image.dtype), target, valid

    def _restore(self, shown: Tensor) -> Tensor:
        output: Tensor = self.head(self.neck(self.encoder(shown)), tuple(shown.shape[2:]))
        return output


@torch.no_grad()
def corrupt(
    image: Float[Tensor, "b c z y x"],
    seed: Int64[Tensor, " b"],
    config: ModelsGenesisConfig,
    valid: Bool[Tensor, "b z y x"] | None = None,
) -> tuple[Float[Tensor, "b c z y x"], Float[Tensor, "b c z y x"], list[list[int]]]:
    """Return what is shown and the target, both float32, and the axes of (c, z, y, x) that were flipped, per sample.

    Voxels that are not valid have no part in a channel's range and are clamped into it, NaN and infinity there as 0.

    Raises:
        ValueError: the patch is too small for a corruption that is drawn.
    """
    if valid is not None:
        image = image.masked_fill(~(valid[:, None] | image.isfinite()), 0)
    target = torch.empty(image.shape, dtype=torch.float32, device=image.device)
    shown, flips = torch.empty_like(target), []
    for b, generator in enumerate(sample_generators(seed)):
        flips.append(transforms.draw_flips(generator, config.flip_probability, config.max_flips))
        target[b] = image[b].flip(flips[b]) if flips[b] else image[b]
        if config.compat == "none":
            transforms.rescale_(target[b], *transforms.value_range(image[b], None if valid is None else valid[b]))
            if valid is not None:
                target[b].clamp_(0, 1)
        _corrupt(target[b], generator, config, out=shown[b])
    return shown, target, flips


def _corrupt(
    patch: Float[Tensor, "c z y x"],
    generator: torch.Generator,
    config: ModelsGenesisConfig,
    *,
    out: Float[Tensor, "c z y x"],
) -> None:
    """Draw all corruptions of a patch, then write it, corrupted, into `out`."""
    patch_zyx = (patch.shape[1], patch.shape[2], patch.shape[3])
    windows = curve = shuffle = None
    if transforms.chance(generator, config.shuffle_probability):
        windows = draw_windows(generator, patch_zyx, config.shuffle_windows)
    if transforms.chance(generator, config.curve_probability):
        curve = transforms.draw_curve(generator, config.inverted_share).to(patch.device)
    noise_around, boxes = False, list[Box]()
    if transforms.chance(generator, config.paint_probability):
        noise_around = not transforms.chance(generator, config.inpaint_share)
        boxes = transforms.draw_boxes(
            generator, patch_zyx, outside=noise_around, probability=config.box_probability, most=config.max_boxes
        )
    noise = torch.Generator(patch.device).manual_seed(int(torch.randint(2**31, (), generator=generator)))
    if windows is not None:
        needed = touching(windows, boxes) if noise_around else windows  # at 128^3 a patch takes 34.6, not 42.6 ms
        shuffle = Shuffle(needed, patch_zyx, patch.device)

    def shuffled_and_bent(piece: Box) -> Tensor:
        values = patch[:, *piece] if shuffle is None else shuffle(patch, piece)
        return values if curve is None else transforms.bend(values, curve)

    def painted(piece: Box) -> Tensor:
        return transforms.noise_like(out[:, *piece], noise)

    around, inside = (painted, shuffled_and_bent) if noise_around else (shuffled_and_bent, painted)
    whole = (slice(0, patch_zyx[0]), slice(0, patch_zyx[1]), slice(0, patch_zyx[2]))
    for box in (whole, *boxes):
        for piece in _slabs(box, patch.device):
            out[:, *piece] = around(piece) if box is whole else inside(piece)


def _slabs(box: Box, device: torch.device) -> Iterator[Box]:
    """Yield the box in slabs of a few planes, so that what is computed from one stays in the cache of a CPU.

    At 128^3 they take a patch from 39.6 to 34.6 ms. Any other device gets the box in one, since it wants few kernels.
    """
    z, y, x = box
    planes = max(1, SLAB // ((y.stop - y.start) * (x.stop - x.start))) if device.type == "cpu" else z.stop - z.start
    for start in range(z.start, z.stop, planes):
        yield slice(start, min(start + planes, z.stop)), y, x


def _smallest_side(config: ModelsGenesisConfig) -> int:
    """Return the side from which on every corruption that the config may draw has room."""
    outside = config.paint_probability > 0 and config.inpaint_share < 1
    inside = config.paint_probability > 0 and config.inpaint_share > 0
    return max(
        SHARE if config.shuffle_probability > 0 else 1,
        transforms.SMALLEST_OUTSIDE if outside else 1,
        transforms.SMALLEST_INSIDE if inside else 1,
    )


def _check_share(name: str, found: float) -> None:
    if not 0 <= found <= 1:
        raise ValueError(f"{name}: found {found}, wanted a number from 0 to 1")
