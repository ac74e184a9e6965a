"""What a detector returns for a tile is taken as it is, or refused with the tile."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn

from girih_detectors.inference import collect, unmirror
from girih_detectors.testing.subject import run_time_types_off

TILE = (16, 8, 12)
BOXES = [[1.0, 2, 3, 4, 5, 6], [0, 0, 0, 16, 8, 12]]


class Says(nn.Module):
    """Finds two boxes in every image, but what it is told instead."""

    classes = ("a", "b")

    def __init__(self, **instead) -> None:
        super().__init__()
        self.pyramid = nn.Identity()
        found = {"boxes": torch.tensor(BOXES), "scores": torch.tensor([0.9, 0.5]), "labels": torch.tensor([1, 0])}
        self.found = found | instead

    def forward(self, images, targets):
        raise NotImplementedError

    tensors = postprocess = forward

    def detect(self, images):
        return [self.found] * len(images)


def seen(model, tiles=1):
    image = np.zeros((1, 16, 8, 12 * tiles), dtype=np.float32)
    return collect(model, image, patch_zyx=TILE, overlap=0.0, mirror=False, batch_size=2)[0]


def test_boxes_are_moved_to_their_tile() -> None:
    found = seen(Says(), tiles=2)
    assert found["boxes"].tolist() == [BOXES[0], [1, 2, 15, 4, 5, 18], BOXES[1], [0, 0, 12, 16, 8, 24]]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.9, 0.5, 0.5])
    assert found["labels"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    "instead",
    [
        {"boxes": np.array(BOXES), "scores": np.array([0.9, 0.5]), "labels": np.array([1, 0], dtype=np.uint8)},
        {"boxes": torch.tensor(BOXES, dtype=torch.bfloat16), "labels": torch.tensor([1, 0], dtype=torch.int16)},
        {"boxes": torch.tensor([BOXES[0], [-5e-4, 0, -1e-5, 16.0005, 8, 12.00001]])},  # rounding: cut off
    ],
)
def test_arrays_other_widths_and_rounding_are_taken(instead) -> None:
    found = seen(Says(**instead))
    assert found["boxes"].tolist() == BOXES
    assert [found[key].dtype for key in found] == [torch.float32, torch.float32, torch.int64, torch.float32]


SHAPES = "wanted \\(n, 6\\), \\(n,\\), \\(n,\\) and labels of integers"


@pytest.mark.parametrize(
    ("instead", "words"),
    [
        ({"boxes": torch.zeros(2, 7)}, rf"of \(2, 7\) torch.float32, .* {SHAPES}"),
        ({"boxes": torch.zeros(12)}, SHAPES),
        ({"boxes": torch.zeros(3, 6)}, SHAPES),
        ({"scores": torch.zeros(2, 1)}, SHAPES),
        ({"scores": torch.zeros(1)}, SHAPES),
        ({"labels": torch.zeros(1).long()}, SHAPES),
        ({"labels": torch.zeros(2)}, rf"\(2,\) torch.float32 for an image, {SHAPES}"),
        ({"labels": torch.tensor([True, False])}, SHAPES),
        ({"boxes": torch.tensor([BOXES[0], [0, 0, torch.nan, 1, 1, 1]])}, "boxes or scores that are not finite"),
        ({"scores": torch.tensor([torch.inf, 0.5])}, "boxes or scores that are not finite"),
        ({"scores": torch.tensor([1.5, 0.5])}, r"the score 1\.5, wanted 0\.\.1"),
        ({"scores": torch.tensor([0.5, -0.5])}, r"the score -0\.5, wanted 0\.\.1"),
        ({"labels": torch.tensor([0, 2])}, r"the label 2, wanted 0\.\.1"),
        ({"labels": torch.tensor([-1, 0])}, r"the label -1, wanted 0\.\.1"),
        (
            {"boxes": torch.tensor([BOXES[0], [1.0, 5, 3, 4, 2, 6]])},
            r"the box \[1\.0, 5\.0, 3\.0, 4\.0, 2\.0, 6\.0\], wan",
        ),
        (
            {"boxes": torch.tensor([BOXES[0], [0, 0, 0, 4, 4, 12.01]])},
            r"the box .* within a tile of \(16, 8, 12\) voxels",
        ),
        (
            {"boxes": torch.tensor([BOXES[0], [-0.01, 0, 0, 4, 4, 4]])},
            r"the box .* wanted z0 <= z1, y0 <= y1, x0 <= x1",
        ),
    ],
)
def test_output_that_is_no_detections_is_refused_with_model_and_tiles(instead, words) -> None:
    tiles = r"tiles starting at \[\(0, 0, 0\), \(0, 0, 12\)\] \(z, y, x\): the detector returned .*"
    with pytest.raises(ValueError, match=f"^{tiles}{words}"):
        seen(Says(**instead), tiles=2)
    with pytest.raises(ValueError, match=f"^model 2 of 2, {tiles}{words}"):
        seen([Says(), Says(**instead)], tiles=2)


def test_columns_that_only_fit_together_are_refused() -> None:  # two boxes and one score, no box and one score
    class Mixed(Says):
        def detect(self, images):
            one, other = super().detect(images)
            return [one | {"scores": one["scores"][:1]}, other | {"boxes": other["boxes"][:0]}]

    with pytest.raises(ValueError, match=SHAPES):
        seen(Mixed(), tiles=2)


@pytest.mark.parametrize(("result", "told"), [(None, "None"), ({"boxes": torch.zeros(0, 6)}, r"\['boxes'\]")])
def test_a_result_without_columns_is_refused(result, told) -> None:
    class Silent(Says):
        def detect(self, images):
            return [result] * len(images)

    with run_time_types_off(), pytest.raises(ValueError, match=f"tiles .* {told} for an image, wanted a dict of boxes"):
        seen(Silent())


@pytest.mark.parametrize("axes", [axes for n in range(4) for axes in permutations(range(3), n)])
def test_unmirror_undoes_a_flip(axes) -> None:
    tile = np.zeros(TILE)
    tile[1:3, 2:6, 3:5] = 1
    where = np.argwhere(np.flip(tile, axes))
    flipped = torch.from_numpy(np.concatenate([where.min(0), where.max(0) + 1])[None].astype(np.float32))
    assert unmirror(flipped, axes, TILE).tolist() == [[1, 2, 3, 3, 6, 5]]
