"""How the queries of Deformable DETR learn: each layer's are matched with the objects, and all are judged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from .anchors import Triple
from .centre_boxes import centre_to_edges, edges_to_centre
from .hungarian import match_hungarian, matching_costs
from .interfaces import Target
from .losses import sigmoid_focal_loss
from .ops import giou
from .over_ranks import mean_over_ranks, world_size
from .query_heads import LayerOutput
from .targets import name_of
from .uncompiled import uncompiled
from .valid_voxels import centre_is_valid


@dataclass(frozen=True)
class SetLoss:
    """Focal loss of all queries, L1 and 1 - GIoU of the matched; nnDetection v2's values for Deformable DETR.

    Every term is a sum over layers, unscaled, over the objects of the batch (of all ranks; at least 1). The encoder's
    proposals learn the true classes. A query that is matched always counts; another is taught that there is nothing
    unless its layer says otherwise (`background`) or, if that says nothing, its box's centre is in a voxel that is not
    valid.

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

    # the matching in its middle is for the host: without this torch.compile would trace the network twice
    @uncompiled
    def __call__(
        self,
        decoded: Sequence[LayerOutput],
        proposed: LayerOutput | None,
        targets: Sequence[Target],
        image_zyx: Triple,
    ) -> dict[str, Tensor]:
        """Return {"loss": scalar with gradient, its parts: detached scalars that add up to it}, float32.

        The parts are "classification", "l1" and "giou" of the decoder's layers, and with "encoder_" before it of what
        the encoder proposes. Every rank has to call this. An image without objects teaches background; of one with more
        objects than queries those are matched that fit best in total (see `match_hungarian`).

        Args:
            decoded: the decoder's layers, in all of which all queries are usable.
            proposed: by the encoder, by any number of queries; None if it has no heads.
            targets: checked ones; one per image.
            image_zyx: voxels of the patch.

        Raises:
            ValueError: logits or boxes of a usable query are not finite; the message names the image and the layer.
        """
        with torch.autocast(decoded[0].logits.device.type, enabled=False):
            layers = [*decoded] if proposed is None else [*decoded, proposed]
            terms = self._terms(layers, len(decoded), targets, image_zyx)
        weights = {"classification": self.classification, "l1": self.l1, "giou": self.giou}
        parts = {name: weights[name.removeprefix("encoder_")] * term for name, term in terms.items()}
        return {"loss": torch.stack(list(parts.values())).sum(), **{k: v.detach() for k, v in parts.items()}}

    def _terms(
        self, layers: Sequence[LayerOutput], decoded: int, targets: Sequence[Target], image_zyx: Triple
    ) -> dict[str, Tensor]:
        # the queries of all layers behind each other
        queries = [layer.logits.shape[1] for layer in layers]
        logits = torch.cat([layer.logits.float() for layer in layers], dim=1)
        boxes = torch.cat([layer.boxes.float() for layer in layers], dim=1)
        usable = torch.cat([_usable(layer) for layer in layers], dim=1)
        counted = torch.cat([_background(layer, targets, image_zyx) for layer in layers], dim=1)

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
        image, query, chosen = pairs.to(logits.device, non_blocking=True)

        wanted = torch.zeros_like(logits)
        wanted[image, query, labels[image, chosen]] = 1
        counted[image, query] = True
        left_out = ~(counted & usable)[..., None]
        # filled, not multiplied by zero: what is not usable may be infinite
        focal = sigmoid_focal_loss(
            logits.masked_fill(left_out, 0.0), wanted, gamma=self.gamma, alpha=self.alpha
        ).masked_fill(left_out, 0.0)
        found, truth = boxes[image, query], objects[image, chosen]
        distance = (found - truth).abs().sum(-1)
        misfit = 1 - giou(centre_to_edges(found), centre_to_edges(truth))

        # the sum over ranks is at least 1
        number = mean_over_ranks(torch.full((), float(sum(counts)), device=logits.device)).clamp(min=1 / world_size())
        # how many queries and pairs the decoder has: each object has a query, or each query an object
        last = sum(queries[:decoded])
        split = sum(min(n, q) for q in queries[:decoded] for n in counts)
        terms = {"classification": focal[:, :last], "l1": distance[:split], "giou": misfit[:split]}
        if decoded < len(layers):
            terms["encoder_classification"] = focal[:, last:]
            terms["encoder_l1"], terms["encoder_giou"] = distance[split:], misfit[split:]
        return {name: term.sum() / number for name, term in terms.items()}


def too_many_objects(targets: Sequence[Target], queries: int, setting: int) -> str | None:
    """Return what to warn of if an image has more objects than a layer has queries; None if none has.

    Args:
        targets: one per image.
        queries: that the layer has in this patch.
        setting: that it has in a patch which has room for them.
    """
    counts = [len(target["labels"]) for target in targets]
    most = max(counts)
    if most <= queries:
        return None
    remedy = f"The plan's `queries` should be at least {most}"
    if queries < setting:
        remedy = (
            f"The patch has no room for `queries` = {setting}: it should have at least {most} usable voxels of memory"
        )
    return (
        f"{name_of(counts.index(most), targets[counts.index(most)])} has {most} objects, the detector {queries} "
        f"queries: training goes on with the {queries} that fit best. {remedy}; this is said once"
    )


def _usable(layer: LayerOutput) -> Tensor:
    if layer.usable is not None:
        return layer.usable
    return torch.ones(layer.logits.shape[:2], dtype=torch.bool, device=layer.logits.device)


def _background(layer: LayerOutput, targets: Sequence[Target], image_zyx: Triple) -> Tensor:
    return centre_is_valid(layer.boxes, targets, image_zyx) if layer.background is None else layer.background


def _padded(targets: Sequence[Target], image_zyx: Triple) -> tuple[Tensor, Tensor]:
    """Return objects (b, n, 6), centre and sides in units of the patch, and labels (b, n), n the most of any image.

    There is at least one row, which has a cost that is seen to be NaN also if there are no objects.
    """
    boxes = pad_sequence([target["boxes"].float() for target in targets], batch_first=True)
    labels = pad_sequence([target["labels"] for target in targets], batch_first=True)
    more = 1 if boxes.shape[1] == 0 else 0
    return edges_to_centre(pad(boxes, (0, 0, 0, more)), image_zyx), pad(labels, (0, more))
