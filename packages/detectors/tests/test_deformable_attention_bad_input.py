"""What does not fit the operators of deformable attention is refused, with both sides named."""

import inspect
import runpy
from pathlib import Path

import pytest
import torch

from girih_detectors.ops import deformable_attention, fused_deformable_attention

INPUTS = runpy.run_path(str(Path(__file__).with_name("attention_inputs.py")))
SHAPES, fused, plain = (INPUTS[name] for name in ("SHAPES", "fused", "plain"))


def refused(op, match, value, shapes, *others, **settings) -> None:
    with pytest.raises(ValueError, match=match):
        inspect.unwrap(op)(value, shapes, *others, **settings)


def test_what_does_not_fit_is_refused_with_both_sides_named() -> None:
    value, places, weights = plain(torch.float32)
    op = deformable_attention
    refused(op, "backend is 'cuda', wanted one of auto, triton, torch", value, SHAPES, places, weights, backend="cuda")
    refused(op, r"value has 66 voxels, its levels .* have 60", value, SHAPES[:1], places, weights)
    refused(
        op,
        r"value has shape \(2, 66, 6\), wanted \(batch, voxels, heads, channels\)",
        value.flatten(2),
        SHAPES,
        places,
        weights,
    )
    refused(op, r"value is torch.int64, wanted one of torch.float32", value.long(), SHAPES, places, weights)
    wanted = r"sampling_locations has shape .*, wanted \(2, any, 2, 2, any, 3\)"
    refused(op, wanted, value, SHAPES, places[..., :2], weights)
    refused(op, wanted, value, SHAPES, places[:1], weights)
    refused(op, wanted, value, SHAPES, places[:, :, :, :1], weights)
    refused(op, wanted, value, SHAPES, places[:, :, 0], weights)
    refused(
        op,
        r"attention_weights has shape \(2, 3, 2, 2, 1\), wanted \(2, 3, 2, 2, 2\)",
        value,
        SHAPES,
        places,
        weights[..., :1],
    )
    refused(op, "is torch.float16, wanted torch.float32.*16 bits cannot tell", value, SHAPES, places.half(), weights)
    refused(
        op,
        "is torch.float64, wanted torch.float32, as value is torch.float32$",
        value,
        SHAPES,
        places.double(),
        weights,
    )
    refused(
        op, "is torch.int64, wanted torch.float32, as value is torch.float32$", value, SHAPES, places.long(), weights
    )
    refused(
        op,
        "attention_weights is torch.float64, wanted torch.float32, as value is torch.float32",
        value,
        SHAPES,
        places,
        weights.double(),
    )
    refused(op, "attention_weights is on meta, wanted cpu", value, SHAPES, places, weights.to("meta"))
    refused(op, "sampling_locations is on meta, wanted cpu", value, SHAPES, places.to("meta"), weights)


def test_what_does_not_fit_the_fused_one_is_refused_too() -> None:
    value, points, offsets, logits = fused(torch.float32)
    op = fused_deformable_attention
    refused(
        op,
        r"reference_points has shape \(2, 3, 4\), wanted \(2, 3, 3\)",
        value,
        SHAPES,
        points.new_ones(2, 3, 4),
        offsets,
        logits,
    )
    refused(op, r"reference_points has shape \(\), wanted \(2, 3, 3\)", value, SHAPES, points.sum(), offsets, logits)
    refused(op, "points is torch.bfloat16, wanted torch.float32", value, SHAPES, points.bfloat16(), offsets, logits)
    refused(
        op, r"offsets has shape .*, wanted \(2, any, 2, 2, any, 3\)", value, SHAPES, points, offsets[..., :2], logits
    )
    refused(
        op,
        r"logits has shape \(2, 2, 2, 2, 2\), wanted \(2, 3, 2, 2, 2\)",
        value,
        SHAPES,
        points,
        offsets,
        logits[:, :2],
    )
    refused(op, "offsets is torch.float64, wanted torch.float32, as", value, SHAPES, points, offsets.double(), logits)
    low = value.bfloat16(), SHAPES, points, offsets.half(), logits.bfloat16()
    refused(op, "offsets is torch.float16, wanted torch.float32 or torch.bfloat16, as value is torch.bfloat16", *low)
    refused(op, "logits is on meta, wanted cpu", value, SHAPES, points, offsets, logits.to("meta"))


@pytest.mark.parametrize(
    "shapes",
    [
        [],
        (3, 4, 5),
        [(3, 4), (2, 3)],
        [(3, 4, 5), (2, 3, 1), (0, 1, 1)],
        [(3.0, 4.0, 5.0), (2, 1, 3)],
        [torch.tensor([3, 4, 5]), torch.tensor([2, 1, 3])],
        torch.tensor(SHAPES),
        [(2**24 + 1, 1, 1)],
    ],
    ids=str,
)
def test_levels_are_triples_of_integers_that_float32_can_count(shapes) -> None:
    value, places, weights = plain(torch.float32)
    wanted = r"spatial_shapes is .*, wanted one \(D, H, W\) or more, each of plain integers from 1 to 2\^24"
    with pytest.raises(ValueError, match="(?s)" + wanted):
        inspect.unwrap(deformable_attention)(value, shapes, places, weights)


@pytest.mark.parametrize("sizes", [{"heads": 0}, {"channels": 0}, {"points": 0}], ids=str)
@pytest.mark.parametrize(("make", "op"), [(plain, deformable_attention), (fused, fused_deformable_attention)])
def test_no_heads_channels_or_points_are_refused(make, op, sizes) -> None:
    name = next(iter(sizes)).removesuffix("s")
    value, *others = make(torch.float32, **sizes)
    refused(op, f"wanted one .*{name}.* or more", value, SHAPES, *others)
