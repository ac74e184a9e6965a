"""Retina U-Net (Jaeger et al. 2020) as nnDetection v2 trains it: ATSS, focal loss, smooth L1, Dice + cross-entropy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .anchors import AnchorGrid, Triple, anchor_grid
from .atss import AnchorMatch, match_atss
from .coder import encode
from .heads import BoxHead, ClassHead, SegmentationHead
from .interfaces import Detections, Pyramid, Target
from .losses import cross_entropy_and_dice, sigmoid_focal_loss, smooth_l1
from .postprocess import PostProcessing, select_detections
from .rank_sums import mean_over_ranks, world_size
from .targets import check_images, check_targets


@dataclass(frozen=True)
class FocalL1:
    """Weights of the training loss; the defaults are nnDetection v2's `retinaunet_l1_focal_atss`."""

    gamma: float = 1.0
    """Focal exponent: 0 is plain cross-entropy."""
    alpha: float = 0.75
    """Focal weight of the positives; 1 - alpha of the negatives."""
    beta: float = 1.0
    """Where smooth L1 turns from square to linear, in units of the encoded deltas."""
    classification: float = 0.3
    """Weight of the focal loss."""
    regression: float = 1.0
    """Weight of smooth L1."""
    segmentation: float = 1.0
    """Weight of the mean of cross-entropy and 1 - Dice."""


FOCAL_L1 = FocalL1()
POST_PROCESSING = PostProcessing()


class RetinaUNet(nn.Module):
    """One-stage detector with a segmentation branch, on any feature pyramid.

    `forward(images, targets)` is the training loss {"loss", "classification", "regression", "segmentation"?}: a scalar
    with gradient and detached parts that add up to it. Several processes under DistributedDataParallel give the
    gradient of one process with the joined batch; every rank has to call `forward`.

    Voxels whose `valid` is False stay out of the segmentation loss, and background anchors centred on them out of the
    classification loss; the anchors of an object count wherever they are.

    Args:
        pyramid: feature maps, finest first; all `levels` of one width.
        classes: names; label k is classes[k].
        anchors_zyx: (A, 3) anchor sides in voxels at the first detection level; scaled by the strides on the others.
        levels: maps of the pyramid that detect.
        head_channels: width of the two towers.
        segmentation: train a foreground segmentation on map 0; targets need `instances`.
        loss: weights of the loss terms.
        post: what `detect` keeps.

    Raises:
        ValueError: levels that the pyramid lacks or that differ in width, anchors or classes that make no sense.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        *,
        classes: Sequence[str],
        anchors_zyx: Sequence[Sequence[int | float]] | np.ndarray | Tensor,
        levels: Sequence[int] = (2, 3, 4, 5),
        head_channels: int = 128,
        segmentation: bool = True,
        loss: FocalL1 = FOCAL_L1,
        post: PostProcessing = POST_PROCESSING,
    ) -> None:
        super().__init__()
        width = _check_levels(pyramid, levels)
        if len(classes) == 0 or len(set(classes)) != len(classes):
            raise ValueError(f"classes are {list(classes)}, wanted at least one and each once")
        self.pyramid = pyramid
        self.classes = tuple(classes)
        self.levels = tuple(levels)
        self.loss_weights = loss
        self.post = post
        self.anchors_zyx: Tensor
        self.register_buffer("anchors_zyx", _check_anchors(anchors_zyx))
        anchors = len(self.anchors_zyx)
        self.class_head = ClassHead(width, head_channels, anchors, len(self.classes))
        self.box_head = BoxHead(width, head_channels, anchors, len(self.levels))
        self.segmentation_head = SegmentationHead(pyramid.channels[0], pyramid.strides[0]) if segmentation else None

    def tensors(self, images: Float[Tensor, "b c z y x"]) -> tuple[Tensor, ...]:
        """Return class logits (b, n, classes), deltas (b, n, 6) and, if it segments, logits (b, 2, z, y, x).

        Row i of the n anchors is box i of `anchors(image_zyx)`.
        """
        maps = self.pyramid(images)
        outputs = self._read(maps)
        return outputs if self.segmentation_head is None else (*outputs, self.segmentation_head(maps[0]))

    def anchors(self, image_zyx: Triple) -> AnchorGrid:
        """Return the anchors of an image of this many voxels."""
        return anchor_grid(image_zyx, [self.pyramid.strides[level] for level in self.levels], self.anchors_zyx)

    def forward(self, images: Float[Tensor, "b c z y x"], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the training loss of a batch.

        Raises:
            ValueError: images or targets do not fit (see `targets`); the message names the image and the row.
        """
        segment = self.segmentation_head is not None
        shape = self._check(images)
        check_targets(targets, len(images), shape, len(self.classes), instances=segment)
        logits, deltas, *masks = self.tensors(images)
        grid = self.anchors(shape)
        with torch.autocast(images.device.type, enabled=False):
            matches = [match_atss(target["boxes"].float(), grid) for target in targets]
            count = float(sum(len(match.anchors) for match in matches))
            # at least one positive in the joined batch of all ranks
            positives = mean_over_ranks(torch.tensor(count, device=images.device)).clamp(min=1 / world_size())
            parts = {
                "classification": self._classification(logits, targets, matches, grid) / positives,
                "regression": self._regression(deltas, targets, matches, grid) / positives,
            }
            if segment:
                parts["segmentation"] = self._segmentation(masks[0], targets)
        return {"loss": torch.stack(list(parts.values())).sum(), **{k: v.detach() for k, v in parts.items()}}

    @torch.no_grad()
    def detect(self, images: Float[Tensor, "b c z y x"]) -> list[Detections]:
        """Return the detections of every image, in voxel edges of that image.

        Raises:
            ValueError: images do not fit, or the network's output is not finite.
        """
        shape = self._check(images)
        logits, deltas = self._read(self.pyramid(images))
        grid = self.anchors(shape)
        return [select_detections(a, b, grid, shape, self.post) for a, b in zip(logits, deltas, strict=True)]

    def _read(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        chosen = [maps[level] for level in self.levels]
        return self.class_head(chosen), self.box_head(chosen)

    def _check(self, images: Tensor) -> Triple:
        # a pyramid that knows its encoder can say which images it takes
        encoder = getattr(self.pyramid, "encoder", self.pyramid)
        return check_images(images, self.pyramid.strides, getattr(encoder, "in_channels", None))

    def _classification(
        self, logits: Tensor, targets: Sequence[Target], matches: Sequence[AnchorMatch], grid: AnchorGrid
    ) -> Tensor:
        """Focal loss, mean over classes, sum over the anchors of the batch."""
        wanted = torch.zeros_like(logits, dtype=torch.float32)
        counted = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
        for row, (target, match) in enumerate(zip(targets, matches, strict=True)):
            wanted[row, match.anchors, target["labels"][match.objects]] = 1
            if "valid" in target:
                counted[row] = _centred_on(target["valid"], grid)
            counted[row, match.anchors] = True
        loss = sigmoid_focal_loss(logits, wanted, gamma=self.loss_weights.gamma, alpha=self.loss_weights.alpha)
        return self.loss_weights.classification * (loss.mean(-1) * counted).sum()

    def _regression(
        self, deltas: Tensor, targets: Sequence[Target], matches: Sequence[AnchorMatch], grid: AnchorGrid
    ) -> Tensor:
        """Smooth L1 on the deltas of the positives, sum over the batch; 0 with zero gradient without objects."""
        found = torch.cat([row[match.anchors] for row, match in zip(deltas, matches, strict=True)])
        wanted = torch.cat(
            [
                encode(target["boxes"].float()[match.objects], grid.boxes(match.anchors))
                for target, match in zip(targets, matches, strict=True)
            ]
        )
        return self.loss_weights.regression * smooth_l1(found, wanted, beta=self.loss_weights.beta).sum()

    def _segmentation(self, logits: Tensor, targets: Sequence[Target]) -> Tensor:
        """Half cross-entropy, half 1 - batch Dice, of all objects against the background."""
        foreground = torch.stack([target["instances"] > 0 for target in targets])
        valid = None
        if any("valid" in target for target in targets):
            everywhere = torch.ones_like(foreground[0])
            valid = torch.stack([target.get("valid", everywhere) for target in targets])
        entropy, dice = cross_entropy_and_dice(logits, foreground, valid)
        return self.loss_weights.segmentation * 0.5 * (entropy + dice)


def _centred_on(valid: Bool[Tensor, "z y x"], grid: AnchorGrid) -> Bool[Tensor, " n"]:
    """Whether the voxel in the middle of each anchor is valid: voxel index * stride, see `anchors.CENTRE_OFFSET`."""
    cells = [valid[::z, ::y, ::x].flatten() for z, y, x in grid.strides]
    return torch.cat(cells).repeat_interleave(grid.per_cell)


def _check_levels(pyramid: Pyramid, levels: Sequence[int]) -> int:
    """Return the width that the levels share."""
    if len(levels) == 0 or any(not 0 <= level < len(pyramid.channels) for level in levels):
        raise ValueError(f"levels are {tuple(levels)}, the pyramid has maps 0..{len(pyramid.channels) - 1}")
    widths = [pyramid.channels[level] for level in levels]
    if len(set(widths)) != 1:
        raise ValueError(f"levels {tuple(levels)} have {widths} channels, wanted one width for the shared heads")
    return widths[0]


def _check_anchors(anchors_zyx: Sequence[Sequence[int | float]] | np.ndarray | Tensor) -> Float[Tensor, "a 3"]:
    anchors = torch.as_tensor(np.asarray(anchors_zyx), dtype=torch.float32).clone()
    if anchors.ndim != 2 or anchors.shape[1] != 3 or len(anchors) == 0:
        raise ValueError(f"anchors_zyx have shape {tuple(anchors.shape)}, wanted (A, 3) with A >= 1")
    if not bool((torch.isfinite(anchors) & (anchors > 0)).all()):
        raise ValueError(f"anchors_zyx have a side that is not a positive number: {anchors.tolist()}")
    return anchors
