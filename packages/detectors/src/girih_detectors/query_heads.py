"""What a query says: which class, and where. One pair of heads per decoder layer, and one for the encoder."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .centre_boxes import logit


class LayerOutput(NamedTuple):
    """What one layer says of a batch."""

    logits: Float[Tensor, "b q classes"]
    """One sigmoid per class."""
    boxes: Float[Tensor, "b q 6"]
    """(z, y, x, dz, dy, dx): centre and sides in units of the patch."""
    usable: Bool[Tensor, "b q"] | None = None
    """Those that take part, all if None. The others are neither matched nor background."""
    background: Bool[Tensor, "b q"] | None = None
    """Those that learn, unless they are matched, that there is nothing; None: whose box's centre is valid."""


class QueryHeads(nn.Module):
    """A linear class head, and three linear layers that move a reference box in logit space.

    Starts with every class at the probability `prior` and every box at its reference. Computes in float32 under
    autocast too, whatever the queries come in: bfloat16 knows a box to half a percent of its place only.

    State: `class_head` and `box_head.0`, `.2`, `.4`, each with `weight` and `bias`.

    Args:
        dim: width of a query.
        classes: how many.
        prior: probability of every class at the start (Lin et al. 2017, section 4.1).

    Raises:
        ValueError: a prior that is not between 0 and 1.
    """

    def __init__(self, dim: int, classes: int, prior: float) -> None:
        super().__init__()
        if not 0 < prior < 1:
            raise ValueError(f"prior is {prior}, wanted a probability between 0 and 1")
        self.class_head = nn.Linear(dim, classes)
        last = nn.Linear(dim, 6)
        self.box_head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), last)
        nn.init.constant_(self.class_head.bias, -math.log((1 - prior) / prior))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, queries: Float[Tensor, "b q dim"], references: Float[Tensor, "b q 6"]) -> LayerOutput:
        """Return the logits, and the boxes sigmoid(move + logit(reference))."""
        with torch.autocast(queries.device.type, enabled=False):
            queries = queries.to(self.class_head.weight.dtype)
            moved = self.box_head(queries).float() + logit(references)
            return LayerOutput(self.class_head(queries).float(), moved.sigmoid())
