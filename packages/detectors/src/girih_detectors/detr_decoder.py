"""The decoder of Deformable DETR with iterative box refinement (Zhu et al. 2021, sections 4.1 and 4.2)."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from .anchors import Triple
from .detr_encoder import FeedForward
from .query_heads import LayerOutput, QueryHeads
from .transformer_settings import TransformerSettings


class DecoderLayer(nn.Module):
    """Queries look at each other, then into memory around their boxes; then feed-forward.

    After each the residual and a LayerNorm. A query's position joins what asks and what is asked, not what is told.
    """

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        dim, heads, dropout = settings.dim, settings.heads, settings.dropout
        self.cross_attention = settings.attention()  # checks the numbers
        self.cross_norm = nn.LayerNorm(dim)
        self.self_attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.self_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(dim, settings.feedforward, dropout)
        nn.init.xavier_uniform_(self.self_attention.out_proj.weight)

    def forward(
        self,
        queries: Float[Tensor, "b q dim"],
        position: Float[Tensor, "b q dim"],
        references: Float[Tensor, "b q 6"],
        memory: Float[Tensor, "b s dim"],
        spatial_shapes: Sequence[Triple],
    ) -> Float[Tensor, "b q dim"]:
        """Return the queries after this layer."""
        asking = queries + position
        told, _ = self.self_attention(asking, asking, queries, need_weights=False)
        queries = self.self_norm(queries + self.dropout(told))
        seen = self.cross_attention(queries + position, references, memory, spatial_shapes)
        found: Tensor = self.feed_forward(self.cross_norm(queries + self.dropout(seen)))
        return found


class DetrDecoder(nn.Module):
    """Decoder layers one after the other, each with heads of its own that move the boxes of the one before.

    Layer l gives boxes sigmoid(move_l + logit(reference_l)); these, without their gradient, are reference_(l+1).

    Args:
        layers: how many, 1 or more.
        settings: of each.
        classes: how many.
        prior: of the class heads.

    Raises:
        ValueError: no layer.
    """

    def __init__(self, layers: int, settings: TransformerSettings, *, classes: int, prior: float) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"decoder_layers is {layers}, wanted 1 or more")
        self.layers = nn.ModuleList(DecoderLayer(settings) for _ in range(layers))
        self.heads = nn.ModuleList(QueryHeads(settings.dim, classes, prior) for _ in range(layers))

    def forward(
        self,
        queries: Float[Tensor, "b q dim"],
        position: Float[Tensor, "b q dim"],
        references: Float[Tensor, "b q 6"],
        memory: Float[Tensor, "b s dim"],
        spatial_shapes: Sequence[Triple],
    ) -> list[LayerOutput]:
        """Return what every layer says, the last one last.

        Args:
            queries: their content.
            position: added to them wherever they ask.
            references: first boxes, by centre and sides in units of the patch, float32.
            memory: of the encoder.
            spatial_shapes: (D, H, W) of the maps in it.
        """
        outputs: list[LayerOutput] = []
        for layer, heads in zip(self.layers, self.heads, strict=True):
            queries = layer(queries, position, references, memory, spatial_shapes)
            outputs.append(heads(queries, references))
            references = outputs[-1].boxes.detach()
        return outputs
