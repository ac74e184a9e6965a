"""How the queries of Deformable DETR learn: each layer's are matched with the objects, and all are judged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .anchors import Triple
from .centre_boxes import centre_to_edges, edges_to_centre
from .hungarian import match_hungarian, matching_costs
from .interfaces import Target
from .losses import sigmoid_focal_loss
from .ops import giou
from .over_ranks import mean_over_ranks, world_size
from .targets import name_of


class LayerOutput(NamedTuple):
    """What one layer says of a batch."""

    logits: Float[Tensor, "b q classes"]
    """One sigmoid per class."""
    boxes: Float[Tensor, "b q 6"]
    """(z, y, x, dz, dy, dx): centre and sides in units of the patch."""
    usable: Bool[Tensor, "b q"] | None = None
    """Given with the encoder's proposals: those that take part. The others are neither matched nor background."""


@dataclass(frozen=True)
class SetLoss:
    """Focal loss of all queries, L1 and 1 - GIoU of the matched; nnDetection v2's values for Deformable DETR.

    Every term is a sum over layers, unscaled, over the objects of the batch (of all ranks; at least 1). The encoder's
    proposals learn the true classes.

    Raises:
        ValueError: a weight or exponent that is negative or not finite, an `alpha` out of 0..1.
    """

    gamma: float = 1.0
    """Focal exponent: 0 is plain cross-entropy."""
    alpha: float = 0.75
    """Focal weight of the matched; 1 - alpha of the background."""
    classification: float = 1.0
    """Weight of the focal loss, which is summed over queries and classes."""
    l1: float = 5.0
    """Weight of the L1 distance, which is summed over centre and sides in units of the patch."""
    giou: float = 2.0
    """Weight of 1 - GIoU."""
    cost_classification: float = 2.0
    """Weight of the focal cost in matching."""
    cost_l1: float = 5.0
    """Weight of the L1 distance in matching."""
    cost_giou: float = 2.0
    """Weight of GIoU in matching."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= (value := getattr(self, field.name)) < math.inf:
                raise ValueError(f"{field.name} is {value}, wanted 0 or more")
        if self.alpha > 1:
            raise ValueError(f"alpha is {self.alpha}, wanted 0 to 1")

    def __call__(
        self, layers: Sequence[LayerOutput], targets: Sequence[Target], image_zyx: Triple
    ) -> dict[str, Tensor]:
        """Return {"loss": scalar with gradient, its parts: detached scalars that add up to it}, float32.

        The parts are "classification", "l1" and "giou" of the decoder's layers, and with "encoder_" before it of layers
        that come with `usable`. Every rank has to call this. An image without objects teaches background; of one with
        more objects than queries those are matched that fit best in total (see `match_hungarian`).

        Args:
            layers: of any numbers of queries.
            targets: checked ones; one per image.
            image_zyx: voxels of the patch.

        Raises:
            ValueError: logits or boxes are not finite; the message names the image.
        """
        with torch.autocast(layers[0].logits.device.type, enabled=False):
            terms = self._terms(layers, targets, image_zyx)
        weights = {"classification": self.classification, "l1": self.l1, "giou": self.giou}
        parts = {name: weights[name.removeprefix("encoder_")] * term for name, term in terms.items()}
        return {"loss": torch.stack(list(parts.values())).sum(), **{k: v.detach() for k, v in parts.items()}}

    def _terms(self, layers: Sequence[LayerOutput], targets: Sequence[Target], image_zyx: Triple) -> dict[str, Tensor]:
        # the decoder's layers first, then the encoder's, all queries behind each other
        layers = sorted(layers, key=lambda layer: layer.usable is not None)
        queries = [layer.logits.shape[1] for layer in layers]
        decoded = sum(n for n, layer in zip(queries, layers, strict=True) if layer.usable is None)
        logits = torch.cat([layer.logits.float() for layer in layers], dim=1)
        boxes = torch.cat([layer.boxes.float() for layer in layers], dim=1)
        usable = torch.cat([_usable(layer) for layer in layers], dim=1)

        objects, labels = _padded(targets, image_zyx)
        counts = [len(target["labels"]) for target in targets]
        costs = matching_costs(
            logits,
            boxes,
            objects,
            labels,
            classification=self.cost_classification,
            l1=self.cost_l1,
            giou_weight=self.cost_giou,
            gamma=self.gamma,
            alpha=self.alpha,
        )
        names = [name_of(image, target) for image, target in enumerate(targets)]
        pairs = match_hungarian(costs, counts, queries, usable, names)
        split = int((pairs[1] < decoded).sum())
        image, query, chosen = pairs.to(logits.device, non_blocking=True)

        wanted = torch.zeros_like(logits)
        wanted[image, query, labels[image, chosen]] = 1
        # filled, not multiplied by zero: what is not usable may be infinite
        focal = sigmoid_focal_loss(
            logits.masked_fill(~usable[..., None], 0.0), wanted, gamma=self.gamma, alpha=self.alpha
        ).masked_fill(~usable[..., None], 0.0)
        found, truth = boxes[image, query], objects[image, chosen]
        distance = (found - truth).abs().sum(-1)
        misfit = 1 - giou(centre_to_edges(found), centre_to_edges(truth))

        # the sum over ranks is at least 1
        number = mean_over_ranks(logits.new_tensor(float(sum(counts)))).clamp(min=1 / world_size())
        terms = {"classification": focal[:, :decoded], "l1": distance[:split], "giou": misfit[:split]}
        if decoded < logits.shape[1]:
            terms["encoder_classification"] = focal[:, decoded:]
            terms["encoder_l1"], terms["encoder_giou"] = distance[split:], misfit[split:]
        return {name: term.sum() / number for name, term in terms.items()}


def too_many_objects(targets: Sequence[Target], queries: int) -> str | None:
    """Return what to warn of if an image has more objects than a layer has queries; None if none has."""
    image, most = max(enumerate(len(target["labels"]) for target in targets), key=lambda pair: pair[1])
    if most <= queries:
        return None
    return (
        f"{name_of(image, targets[image])} has {most} objects, the detector {queries} queries: training goes on with "
        f"the {queries} that fit best. The plan's `queries` should be at least {most}; this is said once"
    )


def _usable(layer: LayerOutput) -> Bool[Tensor, "b q"]:
    if layer.usable is not None:
        return layer.usable
    return torch.ones(layer.logits.shape[:2], dtype=torch.bool, device=layer.logits.device)


def _padded(targets: Sequence[Target], image_zyx: Triple) -> tuple[Tensor, Tensor]:
    """Return objects (b, n, 6), centre and sides in units of the patch, and labels (b, n), n the most of any image."""
    boxes = pad_sequence([target["boxes"].float() for target in targets], batch_first=True)
    labels = pad_sequence([target["labels"] for target in targets], batch_first=True)
    return edges_to_centre(boxes, image_zyx), labels
