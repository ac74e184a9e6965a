"""What all layers of Deformable DETR's encoder and decoder have in common."""

from dataclasses import dataclass

from .deformable_attention import DeformableAttention3D, Directions
from .ops.backends import Backend


@dataclass(frozen=True)
class TransformerSettings:
    """Widths of a layer, and how it attends.

    Raises:
        ValueError: no hidden width, or a dropout out of 0..1.
    """

    dim: int
    """Width of memory and queries."""
    heads: int
    """Of every attention; divides `dim`."""
    levels: int
    """Maps in memory."""
    points: int
    """That a head of deformable attention looks at on a level."""
    feedforward: int
    """Hidden width of the feed-forward part."""
    dropout: float = 0.0
    """In training, of what each part adds, of the hidden layer and of the queries' attention to each other."""
    directions: Directions = "auto"
    """Where heads of deformable attention start to look."""
    backend: Backend = "auto"
    """Of deformable attention."""

    def __post_init__(self) -> None:
        if self.feedforward < 1:
            raise ValueError(f"feedforward is {self.feedforward}, wanted 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, wanted at least 0 and less than 1")

    def attention(self) -> DeformableAttention3D:
        """Return a new deformable attention, which checks the other numbers."""
        return DeformableAttention3D(self.dim, self.heads, self.levels, self.points, self.directions, self.backend)
