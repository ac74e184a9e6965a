"""The encoder of Deformable DETR (Zhu et al. 2021, section 4.1): every voxel of every map looks around itself.

Its memory is the maps' voxels behind each other, finest map first, each row by row in z, y, x.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .anchors import Triple
from .transformer_settings import TransformerSettings


def to_memory(maps: Sequence[Tensor]) -> tuple[Float[Tensor, "b s dim"], tuple[Triple, ...]]:
    """Return maps of one width as memory, and their shapes (D, H, W)."""
    shapes = tuple((x.shape[2], x.shape[3], x.shape[4]) for x in maps)
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1), shapes  # (B, C, D, H, W) -> (B, D*H*W, C)


def voxel_centres(shape: Triple, device: torch.device | None = None) -> Float[Tensor, "s 3"]:
    """Return (index + 0.5) / extent of every voxel of a map along (z, y, x), row by row."""
    axes = [(torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them; residual, then LayerNorm."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.contract = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.expand, self.contract):
            nn.init.xavier_uniform_(layer.weight)  # what all of Deformable DETR's transformer starts with

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        """Return the same rows, each on its own."""
        found: Tensor = self.norm(x + self.dropout(self.contract(self.dropout(self.expand(x).relu()))))
        return found


class EncoderLayer(nn.Module):
    """Deformable self-attention, then feed-forward; after each the residual and a LayerNorm."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.attention = settings.attention()
        self.norm = nn.LayerNorm(settings.dim)
        self.dropout = nn.Dropout(settings.dropout)
        self.feed_forward = FeedForward(settings.dim, settings.feedforward, settings.dropout)

    def forward(
        self,
        memory: Float[Tensor, "b s dim"],
        position: Float[Tensor, "s dim"],
        centres: Float[Tensor, "b s 3"],
        spatial_shapes: Sequence[Triple],
    ) -> Float[Tensor, "b s dim"]:
        """Return the memory after this layer."""
        seen = self.attention(memory + position, centres, memory, spatial_shapes)
        found: Tensor = self.feed_forward(self.norm(memory + self.dropout(seen)))
        return found


class DetrEncoder(nn.Module):
    """Encoder layers one after the other.

    Args:
        layers: how many, 0 or more.
        settings: of each.
        checkpoint_layers: in training keep only what enters each layer and run it again for the gradient: the same
            numbers, less memory.

    Raises:
        ValueError: a negative number of layers.
    """

    def __init__(self, layers: int, settings: TransformerSettings, *, checkpoint_layers: bool = False) -> None:
        super().__init__()
        if layers < 0:
            raise ValueError(f"encoder_layers is {layers}, wanted 0 or more")
        self.layers = nn.ModuleList(EncoderLayer(settings) for _ in range(layers))
        self.checkpoint_layers = checkpoint_layers

    def forward(
        self, memory: Float[Tensor, "b s dim"], position: Float[Tensor, "s dim"], spatial_shapes: Sequence[Triple]
    ) -> Float[Tensor, "b s dim"]:
        """Return the memory after all layers; `position` joins the queries of every layer."""
        centres = torch.cat([voxel_centres(shape, memory.device) for shape in spatial_shapes])
        centres = centres.expand(memory.shape[0], -1, -1)  # len() would fix it in torch.export
        again = self.checkpoint_layers and self.training and torch.is_grad_enabled()
        for layer in self.layers:
            if again:
                memory = checkpoint(layer, memory, position, centres, spatial_shapes, use_reentrant=False)
            else:
                memory = layer(memory, position, centres, spatial_shapes)
        return memory
