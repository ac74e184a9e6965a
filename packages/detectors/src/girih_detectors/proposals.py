"""The first of two stages (Zhu et al. 2021, section 4.2): every voxel of memory proposes, the best become queries.

A voxel proposes the box around its own centre whose sides are 0.05 of the patch on the finest map and twice that on
each next one.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from .anchors import Triple
from .detr_encoder import voxel_centres
from .positional_encoding import box_encoding
from .query_heads import LayerOutput, QueryHeads

FINEST_SIDE = 0.05  # Deformable DETR, `gen_encoder_output_proposals`
LARGEST_SIDE = 0.9
"""What the doubling stops at. From the sixth map on it would be 1.6 of the patch and leave no voxel usable."""
BORDER = 100
"""A centre is usable if it is more than 1 / 100 of the patch from every face: see `usable_proposals`."""


def proposal_boxes(spatial_shapes: Sequence[Triple], device: torch.device | None = None) -> Float[Tensor, "s 6"]:
    """Return what every voxel of memory proposes: centre and sides in units of the patch."""
    boxes = []
    for level, shape in enumerate(spatial_shapes):
        centres = voxel_centres(shape, device)
        boxes.append(torch.cat([centres, torch.full_like(centres, min(FINEST_SIDE * 2**level, LARGEST_SIDE))], 1))
    return torch.cat(boxes)


def usable_proposals(spatial_shapes: Sequence[Triple], device: torch.device | None = None) -> Bool[Tensor, " s"]:
    """Return which voxels of memory may become queries: those whose centre is more than 0.01 from every face.

    They also are the only ones that the encoder's heads learn from. Deformable DETR clears the memory of the others and
    puts their boxes at infinity, but lets them compete for the queries and counts them in the loss: there each learns
    what a voxel without content should say, and can become a query with a box of no use. Only maps of 50 voxels and
    more along an axis have such voxels.
    """
    parts = []
    for shape in spatial_shapes:
        usable = torch.zeros(shape, dtype=torch.bool, device=device)
        usable[tuple(slice(_border(n), n - _border(n)) for n in shape)] = True
        parts.append(usable.flatten())
    return torch.cat(parts)


def count_usable(spatial_shapes: Sequence[Triple]) -> int:
    """Return how many are usable, without a look at any tensor."""
    sides = [[n - 2 * _border(n) for n in shape] for shape in spatial_shapes]
    return sum(z * y * x for z, y, x in sides)


class TwoStage(nn.Module):
    """Scores what memory proposes and makes queries of the best.

    Best is the highest logit of any class, ties go to the lower index. Their boxes are the decoder's first references;
    position and content of a query are learnt from its box alone. No gradient flows back through the choice: the
    proposals learn from a loss of their own.

    Args:
        dim: width of memory, a multiple of 4.
        classes: how many.
        queries: how many, or fewer in a patch of fewer usable voxels.
        prior: of the class head.

    Raises:
        ValueError: no query, or a width that is no multiple of 4.
    """

    def __init__(self, dim: int, classes: int, queries: int, prior: float) -> None:
        super().__init__()
        if queries < 1:
            raise ValueError(f"queries is {queries}, wanted 1 or more")
        if dim < 4 or dim % 4:
            raise ValueError(f"dim is {dim}, wanted a multiple of 4")
        self.dim, self.queries = dim, queries
        self.project = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.heads = QueryHeads(dim, classes, prior)
        self.embed = nn.Linear(3 * dim, 2 * dim)  # 6 numbers of a box, dim / 2 features each
        self.embed_norm = nn.LayerNorm(2 * dim)
        for layer in (self.project, self.embed):
            nn.init.xavier_uniform_(layer.weight)

    def propose(self, memory: Float[Tensor, "b s dim"], spatial_shapes: Sequence[Triple]) -> LayerOutput:
        """Return the logits and boxes of all voxels of memory, and which of them are usable."""
        # shape[0], not len(): torch.export would take the number of images for a constant
        references = proposal_boxes(spatial_shapes, memory.device).expand(memory.shape[0], -1, -1)
        usable = usable_proposals(spatial_shapes, memory.device).expand(memory.shape[0], -1)
        proposed: LayerOutput = self.heads(self.norm(self.project(memory)), references)
        return proposed._replace(usable=usable)

    def choose(self, proposed: LayerOutput, spatial_shapes: Sequence[Triple]) -> Float[Tensor, "b q 6"]:
        """Return the boxes of the best usable, best first, without gradient."""
        scores = proposed.logits.detach().amax(-1)
        if proposed.usable is not None:
            scores = scores.masked_fill(~proposed.usable, -torch.inf)
        best = _best(scores, min(self.queries, count_usable(spatial_shapes)))
        return proposed.boxes.detach().gather(1, best[..., None].expand(-1, -1, 6))

    def queries_of(self, boxes: Float[Tensor, "b q 6"]) -> tuple[Float[Tensor, "b q dim"], Float[Tensor, "b q dim"]]:
        """Return position and content of the queries with these boxes."""
        code = box_encoding(boxes, self.dim // 2).to(self.embed.weight.dtype)
        both = self.embed_norm(self.embed(code)).to(code.dtype)  # autocast may have lowered it
        position, content = both.split(self.dim, -1)
        return position, content


def _border(cells: int) -> int:
    """Cells of an axis at each end whose centre (i + 0.5) / cells is not more than 0.01 from the face; exact."""
    return (cells + BORDER // 2) // BORDER


def _best(scores: Float[Tensor, "b s"], count: int) -> Int64[Tensor, "b q"]:
    """The highest of every row in order. torch.topk leaves ties open, and every device breaks them its own way."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
