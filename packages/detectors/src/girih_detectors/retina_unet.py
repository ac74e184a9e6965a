"""Retina U-Net (Jaeger et al. 2020) as nnDetection trains it: ATSS, one of two losses, Dice + cross-entropy."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .anchor_truth import anchor_truth
from .anchors import AnchorGrid, Triple, anchor_grid
from .flavours import Flavour, FocalL1
from .heads import Activation, BoxHead, ClassHead, SegmentationHead
from .interfaces import Detections, Pyramid, Target
from .losses import cross_entropy_and_dice
from .postprocess import PostProcessing, select_detections
from .targets import check_classes, check_levels, check_targets, image_shape

FOCAL_L1 = FocalL1()
POST_PROCESSING = PostProcessing()


class RetinaUNet(nn.Module):
    """One-stage detector with a segmentation branch, on any feature pyramid.

    `forward(images, targets)` is the training loss {"loss", "classification", "regression", "segmentation"?}: a scalar
    with gradient and detached parts that add up to it. Several processes under DistributedDataParallel give the
    gradient of one process with the joined batch; every rank has to call `forward`.

    Voxels whose `valid` is False stay out of the segmentation loss. Background anchors of a cell whose centre is less
    than one stride from such a voxel, along every axis and level by level, stay out of the classification loss: so a
    small object that is to be ignored, marked as not valid, is not taught as background. The anchors of an object count
    wherever they are.

    The anchors' sides stay float32 when the module is cast.

    Args:
        pyramid: feature maps, finest first; all `levels` of one width.
        classes: names; label k is classes[k].
        anchors_zyx: (A, 3) anchor sides in voxels at the first detection level; scaled by the strides on the others.
        levels: maps of the pyramid that detect.
        head_channels: width of the two towers.
        segmentation: train a foreground segmentation on map 0; targets need `instances`.
        loss: how anchors learn: `FocalL1()`, or `HnmGiou()` for nnDetection v0.1's, or your own `Flavour`.
        activation: of the towers, "leaky_relu" (nnDetection v2) or "relu" (v0.1).
        post: what `detect` keeps.

    Raises:
        ValueError: levels that the pyramid lacks, that do not ascend or that differ in width, anchors or classes that
            make no sense, an unknown activation.
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
        loss: Flavour = FOCAL_L1,
        activation: Activation = "leaky_relu",
        post: PostProcessing = POST_PROCESSING,
    ) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.classes = check_classes(classes)
        self.levels = check_levels(pyramid, levels)
        width = _width(pyramid, self.levels)
        self.loss = loss
        self.post = post
        self.anchors_zyx: Tensor
        self.register_buffer("anchors_zyx", _check_anchors(anchors_zyx))
        anchors = len(self.anchors_zyx)
        self.class_head = ClassHead(width, head_channels, anchors, len(self.classes), activation=activation)
        self.box_head = BoxHead(width, head_channels, anchors, len(self.levels), activation=activation)
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
        shape = image_shape(self.pyramid, images)
        check_targets(targets, len(images), shape, len(self.classes), instances=segment)
        truth = anchor_truth(targets, self.anchors(shape))  # first: on a GPU its synchronisations do not await the maps
        logits, deltas, *masks = self.tensors(images)
        with torch.autocast(images.device.type, enabled=False):
            classification, regression = self.loss(logits, deltas, truth, targets)
            parts = {"classification": classification, "regression": regression}
            if segment:
                parts["segmentation"] = self._segmentation(masks[0], targets)
        return {"loss": torch.stack(list(parts.values())).sum(), **{k: v.detach() for k, v in parts.items()}}

    @torch.no_grad()
    def detect(self, images: Float[Tensor, "b c z y x"]) -> list[Detections]:
        """Return the detections of every image, in voxel edges of that image.

        The mode stays as it is: call `eval()` before, as `detect_volume` does, if the pyramid has dropout.

        Raises:
            ValueError: images do not fit, or the network's output is not finite.
        """
        shape = image_shape(self.pyramid, images)
        return self.postprocess(self._read(self.pyramid(images)), shape)

    def postprocess(self, tensors: Sequence[Tensor], image_zyx: Triple) -> list[Detections]:
        """Return the detections in what `tensors` gave for images of this many voxels; it needs no weights.

        Raises:
            ValueError: the tensors are not those of such images, or not finite.
        """
        coarsest = self.pyramid.strides[self.levels[-1]]
        if any(side < 1 or side % step for side, step in zip(image_zyx, coarsest, strict=True)):
            raise ValueError(f"image_zyx is {tuple(image_zyx)}, wanted three multiples of {coarsest}")
        grid = self.anchors(image_zyx)
        logits, deltas, *masks = tensors
        for name, found, width in (("logits", logits, len(self.classes)), ("deltas", deltas, 6)):
            if tuple(found.shape[1:]) != (len(grid), width):
                raise ValueError(
                    f"{name} have shape {tuple(found.shape)}, wanted (b, {len(grid)}, {width}) for {tuple(image_zyx)}"
                )
        if masks and tuple(masks[0].shape[2:]) != tuple(image_zyx):
            raise ValueError(f"image_zyx is {tuple(image_zyx)}, the tensors are of images {tuple(masks[0].shape[2:])}")
        return [select_detections(a, b, grid, image_zyx, self.post) for a, b in zip(logits, deltas, strict=True)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RetinaUNet":
        exact = self.anchors_zyx
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.anchors_zyx.dtype != exact.dtype:  # bfloat16 has 27.125 for 27.1
            self.anchors_zyx = exact.to(self.anchors_zyx.device)
        return self

    def _read(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        chosen = [maps[level] for level in self.levels]
        return self.class_head(chosen), self.box_head(chosen)

    def _segmentation(self, logits: Tensor, targets: Sequence[Target]) -> Tensor:
        """Half cross-entropy, half 1 - batch Dice, of all objects against the background."""
        foreground = torch.stack([target["instances"] > 0 for target in targets])
        valid = None
        if any("valid" in target for target in targets):
            everywhere = torch.ones_like(foreground[0])
            valid = torch.stack([target.get("valid", everywhere) for target in targets])
        entropy, dice = cross_entropy_and_dice(logits, foreground, valid, dice_numerator=self.loss.dice_numerator)
        return self.loss.segmentation * 0.5 * (entropy + dice)


def _width(pyramid: Pyramid, levels: Sequence[int]) -> int:
    """Return the width that the levels share."""
    widths = [pyramid.channels[level] for level in levels]
    if len(set(widths)) != 1:
        raise ValueError(f"levels {tuple(levels)} have {widths} channels, wanted one width for the shared heads")
    return widths[0]


def _check_anchors(anchors_zyx: Sequence[Sequence[int | float]] | np.ndarray | Tensor) -> Float[Tensor, "a 3"]:
    given = anchors_zyx.numpy(force=True) if isinstance(anchors_zyx, Tensor) else anchors_zyx
    anchors = np.array(given, np.float32)
    if anchors.ndim != 2 or anchors.shape[1] != 3 or len(anchors) == 0:
        raise ValueError(f"anchors_zyx have shape {anchors.shape}, wanted (A, 3) with A >= 1")
    if not (np.isfinite(anchors) & (anchors > 0)).all():
        raise ValueError(f"anchors_zyx have a side that is not a positive number: {anchors.tolist()}")
    return torch.tensor(anchors)
