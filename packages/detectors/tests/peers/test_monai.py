"""Anchors, coder, overlap and ATSS against MONAI's, where both mean the same.

MONAI's "xyz" are the array axes in order, as our "zyx"; boxes are all low corners, then all high ones, in both. Its
anchors stand on (index + 1 / 2) * stride, ours on index * stride + 1 / 2, so objects are moved by the difference, one
level at a time; anchor sides are even, because MONAI rounds their halves.
"""

import numpy as np
import pytest
import torch

from girih_detectors import (
    anchor_grid,
    class_nms,
    decode,
    encode,
    giou,
    match_atss,
    pairwise_giou,
    pairwise_iou,
    sample_anchors,
)

pytest.importorskip("monai", reason="MONAI is not installed: dependency group `peers`")

from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.apps.detection.utils.hard_negative_sampler import HardNegativeSampler
from monai.data.box_utils import box_giou, box_iou, box_pair_giou, non_max_suppression

SIZES = [[4.0, 6.0, 8.0], [6.0, 6.0, 6.0], [2.0, 8.0, 4.0]]


def random_boxes(n, seed, reach=30.0, smallest=1.0, largest=14.0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, reach, (n, 3))
    return torch.tensor(np.concatenate([low, low + rng.uniform(smallest, largest, (n, 3))], axis=1)).float()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_iou() -> None:
    a, b = random_boxes(60, 0), random_boxes(80, 1)
    torch.testing.assert_close(pairwise_iou(a, b), box_iou(a, b))
    far = a + 1000
    assert torch.equal(pairwise_iou(a, far), box_iou(a, far))


def test_giou() -> None:
    a, b = random_boxes(60, 2), random_boxes(60, 3)
    torch.testing.assert_close(pairwise_giou(a, b), box_giou(a, b), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(giou(a, b), box_pair_giou(a, b), atol=1e-6, rtol=1e-5)


def test_gradient_of_giou() -> None:
    a, b = random_boxes(40, 4).requires_grad_(), random_boxes(40, 5)
    (ours,) = torch.autograd.grad(giou(a, b).sum(), a)
    (theirs,) = torch.autograd.grad(box_pair_giou(a, b).sum(), a)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_coder() -> None:
    boxes, anchors = random_boxes(100, 6), random_boxes(100, 7)
    coder = BoxCoder(weights=(1.0,) * 6)
    deltas = encode(boxes, anchors)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors), atol=1e-5, rtol=1e-4)
    wild = torch.randn(100, 6, generator=torch.Generator().manual_seed(0)) * 5  # log sizes beyond the limit too
    assert wild[:, 3:].max() > np.log(1000 / 16)
    for x in (deltas, wild):
        torch.testing.assert_close(decode(x, anchors), coder.decode_single(x, anchors), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("shape", [(16, 24, 32), (8, 8, 40)])
def test_anchors(shape) -> None:
    strides = [(2, 4, 4), (4, 8, 8), (8, 8, 8)]
    ours = anchor_grid(shape, strides, torch.tensor(SIZES)).all_boxes()
    generators = [  # one each: MONAI scales all axes of a level alike
        AnchorGeneratorWithAnchorShape(
            (1,), (torch.tensor(SIZES) * torch.tensor(s) / torch.tensor(strides[0])).tolist()
        )
        for s in strides
    ]
    image, theirs = torch.zeros(1, 1, *shape), []
    for stride, generator in zip(strides, generators, strict=True):
        level = torch.zeros(1, 1, *(n // s for n, s in zip(shape, stride, strict=True)))
        offset = torch.tensor([0.5 - s // 2 for s in stride]).repeat(2)
        theirs.append(generator(image, [level])[0] + offset)
    torch.testing.assert_close(ours, torch.cat(theirs))


def matched(boxes, grid, cells):
    """{anchor: object} of MONAI's matcher, whose `num_anchors_per_level` are cells that cap the candidates."""
    matcher = ATSSMatcher(num_candidates=cells, similarity_fn=box_iou, center_in_gt=False)
    counts = [length // grid.per_cell for length in grid.level_lengths]
    _, found = matcher(boxes, grid.all_boxes(), counts, grid.per_cell)
    return {anchor: row for anchor, row in enumerate(found.tolist()) if row >= 0}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("strides", [((4, 4, 4), (8, 8, 8)), ((2, 4, 4), (4, 8, 8))], ids=["cubic", "anisotropic"])
def test_atss(seed, strides) -> None:
    grid = anchor_grid((32, 32, 32), strides, torch.tensor(SIZES))
    boxes = random_boxes(1 + seed % 5, seed, reach=22.0, smallest=3.0, largest=10.0)  # each touches some candidate
    ours = match_atss(boxes, grid)
    assert dict(zip(ours.anchors.tolist(), ours.objects.tolist(), strict=True)) == matched(boxes, grid, 4)


def test_atss_differs_where_an_object_touches_no_candidate() -> None:
    grid = anchor_grid((32, 32, 32), ((8, 8, 8),), torch.tensor([[2.0, 2.0, 2.0]]))
    speck = torch.tensor([[4.0, 4, 4, 4.5, 4.5, 4.5]])
    assert len(matched(speck, grid, 4)) == 4  # all candidates: IoU 0 reaches the threshold 0
    assert len(match_atss(speck, grid).anchors) == 1  # the nearest


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_nms(seed, threshold) -> None:
    boxes = random_boxes(200, seed, reach=20.0)
    scores = torch.rand(200, generator=torch.Generator().manual_seed(seed))
    ours = class_nms(boxes, scores, torch.zeros(200, dtype=torch.int64), threshold)
    assert ours.tolist() == non_max_suppression(boxes, scores, threshold).tolist()


@pytest.mark.parametrize("available", [1, 5, 42, 200])
def test_numbers_of_hard_negatives(available) -> None:  # MONAI counts by image, nnDetection by batch: a batch of one
    scores = torch.rand(1, 5000)
    labels = torch.zeros(5000, dtype=torch.int64)
    labels[:available] = 1
    settings = {"positive_fraction": 0.33, "pool_size": 20}
    positive, negative = HardNegativeSampler(batch_size_per_image=128, **settings)([labels], scores[0])
    ours = sample_anchors(
        scores,
        torch.arange(available),
        labels[None] == 0,
        torch.tensor([7]),
        per_image=128,
        positive_fraction=0.33,
        pool=20,
    )
    assert [len(rows) for rows in ours] == [int(positive[0].sum()), int(negative[0].sum())]
