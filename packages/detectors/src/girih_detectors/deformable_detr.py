"""Deformable DETR (Zhu et al. 2021) in 3D as nnDetection v2 trains it: two stages, boxes refined layer by layer."""

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .anchors import Triple
from .channel_mapper import ChannelMapper
from .deformable_attention import Directions
from .detr_decoder import DetrDecoder
from .detr_encoder import DetrEncoder, to_memory
from .interfaces import Detections, Pyramid, Target
from .ops.backends import Backend
from .positional_encoding import PositionalEncoding3D
from .proposals import TwoStage
from .query_detections import select_queries
from .query_heads import LayerOutput
from .set_loss import SetLoss, too_many_objects
from .targets import check_classes, check_levels, check_targets, image_shape
from .transformer_settings import TransformerSettings
from .valid_voxels import far_from_invalid

SET_LOSS = SetLoss()

ORIGINAL_2D: Mapping[str, Any] = MappingProxyType(
    {
        "queries": 300,
        "dim": 256,
        "heads": 8,
        "points": 4,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "feedforward": 1024,
        "dropout": 0.1,
        "loss": SetLoss(gamma=2.0, alpha=0.25, classification=2.0),
        "prior": 0.01,
        "position_offset": -0.5,
    }
)
"""Keyword arguments of `DeformableDETR` for the numbers of Zhu et al. 2021 (section 5, and their code).

What stays as it is: the encoder learns true classes (there: object or not), voxels at the border do not compete (see
`usable_proposals`), and the ChannelMapper has 16 groups (there 32).
"""


class DeformableDETR(nn.Module):
    """Transformer that finds objects as a set: queries look where they need to, and no NMS follows.

    The maps are brought to one width; every voxel of them looks around itself (encoder); each proposes a box, and the
    best become queries, whose boxes the decoder's layers move one after the other. Every layer has heads of its own.

    `forward(images, targets)` is the training loss {"loss", parts} (`SetLoss`): a scalar with gradient and detached
    parts that add up to it. Several processes under DistributedDataParallel give the gradient of one process with the
    joined batch; every rank has to call `forward`. Targets need `boxes` and `labels` only.

    A query that answers for no object teaches nothing if the centre of its box lies in a voxel that is not `valid`, and
    neither does a voxel of memory whose centre is less than one stride from such a voxel, along every axis and level by
    level: so a small object that is to be ignored, marked as not valid, is not taught as background. Those that answer
    for an object count wherever they are.

    The defaults are the paper's ("The Missing Piece" trains nnDetection v2's `def_detr`), `ORIGINAL_2D` has the 2D
    original's.

    Args:
        pyramid: feature maps, finest first, of any widths; an encoder will do.
        classes: names; label k is classes[k].
        queries: boxes that are sought in a patch; the paper's: max(12, 3 x the 95th percentile of objects per patch). A
            patch whose maps have fewer usable voxels has a query for each of these.
        levels: maps that are read; None: the last four, or all if there are fewer.
        dim: width of the transformer, a multiple of 16 (groups of a norm) and of `heads`.
        heads: of every attention.
        points: that a head of deformable attention looks at on each level.
        encoder_layers: 0 or more.
        decoder_layers: 1 or more.
        feedforward: hidden width of the feed-forward parts.
        dropout: in training, of what each part adds.
        loss: how queries learn.
        prior: probability of every class that a query starts with.
        position_offset: of the positional encoding, in voxels of a map; the 2D original has -0.5.
        checkpoint_encoder: keep less of the encoder's layers for the gradient, and run them again: the same numbers.
        max_detections: pairs of query and class that `detect` keeps per image.
        directions: in which heads of deformable attention start to look: see `DeformableAttention3D`.
        backend: of deformable attention, "triton" or "torch"; "auto" is Triton on CUDA.

    Raises:
        ValueError: levels that the pyramid lacks or that do not ascend, or numbers that make no sense.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        *,
        classes: Sequence[str],
        queries: int,
        levels: Sequence[int] | None = None,
        dim: int = 128,
        heads: int = 8,
        points: int = 4,
        encoder_layers: int = 3,
        decoder_layers: int = 6,
        feedforward: int = 1024,
        dropout: float = 0.0,
        loss: SetLoss = SET_LOSS,
        prior: float = 0.05,
        position_offset: float = 0.0,
        checkpoint_encoder: bool = False,
        max_detections: int = 100,
        directions: Directions = "auto",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if max_detections < 1:
            raise ValueError(f"max_detections is {max_detections}, wanted 1 or more")
        maps = len(pyramid.channels)
        self.pyramid = pyramid
        self.classes = check_classes(classes)
        self.levels = check_levels(pyramid, range(max(0, maps - 4), maps) if levels is None else levels)
        self.loss = loss
        self.max_detections = max_detections
        self.mapper = ChannelMapper([pyramid.channels[level] for level in self.levels], dim)
        self.positions = PositionalEncoding3D(dim, len(self.levels), position_offset)
        settings = TransformerSettings(
            dim, heads, len(self.levels), points, feedforward, dropout, directions=directions, backend=backend
        )
        self.encoder = DetrEncoder(encoder_layers, settings, checkpoint_layers=checkpoint_encoder)
        self.proposals = TwoStage(dim, len(self.classes), queries, prior)
        self.decoder = DetrDecoder(decoder_layers, settings, classes=len(self.classes), prior=prior)
        self._warned = False

    def tensors(self, images: Float[Tensor, "b c z y x"]) -> tuple[Tensor, Tensor]:
        """Return the last layer's class logits (b, q, classes) and boxes (b, q, 6).

        Boxes are centre and sides in units of the patch.
        """
        last = self._read(images)[0][-1]
        return last.logits, last.boxes

    def forward(self, images: Float[Tensor, "b c z y x"], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the training loss of a batch.

        Of an image with more objects than queries the best-matched learn; the first such image is a warning.

        Raises:
            ValueError: images or targets do not fit (see `targets`); the message names the image and the row. Or the
                network's output is not finite.
        """
        shape = image_shape(self.pyramid, images)
        check_targets(targets, len(images), shape, len(self.classes), instances=False)
        decoded, proposed = self._read(images)
        queries = decoded[0].logits.shape[1]
        if not self._warned and (message := too_many_objects(targets, queries, self.proposals.queries)):
            warnings.warn(message, stacklevel=2)
            self._warned = True
        proposed = proposed._replace(background=self._background(targets, proposed))
        losses: dict[str, Tensor] = self.loss(decoded, proposed, targets, shape)
        return losses

    @torch.no_grad()
    def detect(self, images: Float[Tensor, "b c z y x"]) -> list[Detections]:
        """Return the detections of every image, in voxel edges of that image.

        The mode stays as it is: call `eval()` before, as `detect_volume` does, if there is dropout.

        Raises:
            ValueError: images do not fit, or the network's output is not finite.
        """
        shape = image_shape(self.pyramid, images)
        return self.postprocess(self.tensors(images), shape)

    def postprocess(self, tensors: Sequence[Tensor], image_zyx: Triple) -> list[Detections]:
        """Return the detections in what `tensors` gave for images of this many voxels; it needs no weights.

        Raises:
            ValueError: the tensors are not those of such images, or not finite.
        """
        if any(side < 1 for side in image_zyx):
            raise ValueError(f"image_zyx is {tuple(image_zyx)}, wanted three sides of 1 or more")
        logits, boxes = tensors
        if logits.ndim != 3 or logits.shape[2] != len(self.classes):
            raise ValueError(f"logits have shape {tuple(logits.shape)}, wanted (b, queries, {len(self.classes)})")
        if tuple(boxes.shape) != (*logits.shape[:2], 6):
            raise ValueError(f"boxes have shape {tuple(boxes.shape)}, wanted {(*logits.shape[:2], 6)}")
        limit = self.max_detections
        return [select_queries(a, b, image_zyx, max_detections=limit) for a, b in zip(logits, boxes, strict=True)]

    def _read(self, images: Tensor) -> tuple[list[LayerOutput], LayerOutput]:
        """Return what each layer of the decoder says, and what the encoder proposes."""
        maps = self.pyramid(images)
        memory, shapes = to_memory(self.mapper([maps[level] for level in self.levels]))
        # under autocast this is float32, in which residuals add up
        memory = memory.to(self.positions.level_embedding.dtype)
        memory = self.encoder(memory, self.positions(shapes).to(memory.dtype), shapes)
        proposed = self.proposals.propose(memory, shapes)
        references = self.proposals.choose(proposed, shapes)
        position, content = self.proposals.queries_of(references)
        return self.decoder(content, position, references, memory, shapes), proposed

    @torch.no_grad()
    def _background(self, targets: Sequence[Target], proposed: LayerOutput) -> Bool[Tensor, "b s"]:
        """Return which voxels of memory are far enough from what is not valid to be background."""
        background = torch.ones(proposed.logits.shape[:2], dtype=torch.bool, device=proposed.logits.device)
        for row, target in zip(background, targets, strict=True):
            if "valid" in target:
                strides = [self.pyramid.strides[level] for level in self.levels]
                row[:] = torch.cat([far_from_invalid(target["valid"], stride, middle=True) for stride in strides])
        return background
