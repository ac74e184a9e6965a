"""Whole volumes, with a detector that finds bright cuboids exactly."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from girih_detectors import RetinaUNet, detect_volume
from girih_detectors.inference import unmirror
from girih_detectors.testing import TinyPyramid, toy_batch


class BrightBoxes(nn.Module):
    """One box per connected bright component; its intensity is 10 x class + score."""

    classes = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = nn.Identity()
        self.anything = nn.Parameter(torch.zeros(1))
        self.calls: list[tuple[int, ...]] = []

    def forward(self, images, targets):
        raise NotImplementedError

    def tensors(self, images):
        raise NotImplementedError

    def detect(self, images):
        assert not self.training
        self.calls.append(tuple(images.shape))
        return [self._one(image[0].numpy()) for image in images]

    def postprocess(self, tensors, image_zyx):
        raise NotImplementedError

    def _one(self, image):
        marks, count = ndimage.label(image > 0)
        rows = []
        for k, part in enumerate(ndimage.find_objects(marks)):
            value = float(image[marks == k + 1].max())
            rows.append([*(s.start for s in part), *(s.stop for s in part), value % 10, int(value // 10)])
        table = torch.tensor(sorted(rows, key=lambda r: -r[6]), dtype=torch.float32).reshape(count, 8)
        return {"boxes": table[:, :6], "scores": table[:, 6], "labels": table[:, 7].long()}


def planted(shape, boxes, values):
    image = np.zeros((1, *shape), dtype=np.float32)
    for (z, y, x, zz, yy, xx), value in zip(boxes, values, strict=True):
        image[0, z:zz, y:yy, x:xx] = value
    return image


OBJECTS = [(1, 2, 3, 4, 5, 6), (20, 14, 9, 23, 18, 12), (11, 22, 1, 14, 25, 5)]
VALUES = [0.9, 10.8, 0.7]


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_objects_come_back_once_at_their_place(mirror, batch_size) -> None:
    detector, seen = BrightBoxes().train(), []
    found = detect_volume(
        detector,
        planted((24, 26, 13), OBJECTS, VALUES),
        patch_zyx=(16, 16, 16),
        overlap=0.5,
        mirror=mirror,
        batch_size=batch_size,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert found["boxes"].dtype == np.float32
    assert found["boxes"][:3].tolist() == [list(map(float, box)) for box in OBJECTS]
    np.testing.assert_allclose(found["scores"][:3], [0.9, 0.8, 0.7], atol=1e-5)
    assert found["labels"][:3].tolist() == [0, 1, 0]
    assert detector.training  # the mode before the call
    assert seen[-1] == (6, 6)  # 2 x 3 x 1 tiles: (24 - 16) / 8 + 1, ceil((26 - 16) / 8) + 1, padded
    assert len(detector.calls) == len(seen) * (8 if mirror else 1)


def test_answer_does_not_depend_on_the_batch_size() -> None:
    torch.manual_seed(0)
    detector = RetinaUNet(
        TinyPyramid(), classes=("a", "b"), anchors_zyx=[[4, 4, 4], [6, 6, 6]], levels=(1, 2), head_channels=16
    )
    image = np.random.default_rng(0).normal(size=(1, 20, 30, 16)).astype(np.float32)
    one = detect_volume(detector, image, patch_zyx=(16, 16, 16), mirror=False, batch_size=1)
    four = detect_volume(detector, image, patch_zyx=(16, 16, 16), mirror=False, batch_size=4)
    np.testing.assert_allclose(one["boxes"], four["boxes"], atol=1e-4)
    np.testing.assert_allclose(one["scores"], four["scores"], atol=1e-6)
    assert np.array_equal(one["labels"], four["labels"])
    assert (one["boxes"] >= 0).all()
    assert (one["boxes"] <= [20, 30, 16] * 2).all()
    assert (np.diff(one["scores"]) <= 0).all()


def test_a_volume_of_one_tile_is_what_detect_finds() -> None:
    torch.manual_seed(0)
    detector = RetinaUNet(TinyPyramid(), classes=("a", "b"), anchors_zyx=[[6, 6, 6]], levels=(1, 2), head_channels=16)
    images, _ = toy_batch((2,))
    whole = detect_volume(detector, images[0].numpy(), patch_zyx=(24, 24, 24), mirror=False)
    best = detector.detect(images)[0]
    np.testing.assert_allclose(whole["boxes"][0], best["boxes"][0].numpy())


@pytest.mark.parametrize(
    "axes", [axes for n in range(4) for axes in product(range(3), repeat=n) if len(set(axes)) == n]
)
def test_unmirror_undoes_a_flip(axes) -> None:
    patch = (8, 10, 12)
    image = torch.from_numpy(planted(patch, [(1, 2, 3, 3, 6, 5)], [0.5]))[None]
    flipped = BrightBoxes().eval().detect(image.flip([a + 2 for a in axes]))[0]
    assert unmirror(flipped["boxes"], list(axes), patch).tolist() == [[1, 2, 3, 3, 6, 5]]


def test_tiles_without_valid_voxels_are_never_read() -> None:
    image = planted((16, 16, 64), [(2, 2, 2, 5, 5, 5), (2, 2, 50, 5, 5, 53)], [0.9, 0.8])
    valid = np.zeros((16, 16, 64), dtype=bool)
    valid[:, :, :10] = True

    class Recorder:
        shape, dtype = image.shape, image.dtype

        def __getitem__(self, index):
            assert all(0 <= s.start < s.stop <= n for s, n in zip(index, self.shape, strict=True))
            assert index[3].start < 10
            return image[index]

    found = detect_volume(BrightBoxes(), Recorder(), patch_zyx=(16, 16, 16), mirror=False, valid=valid)
    assert found["boxes"].tolist() == [[2, 2, 2, 5, 5, 5]]
    nothing = detect_volume(BrightBoxes(), image, patch_zyx=(16, 16, 16), valid=np.zeros_like(valid))
    assert nothing["boxes"].shape == (0, 6)


def test_smaller_than_the_patch_is_padded_and_clipped() -> None:
    found = detect_volume(BrightBoxes(), planted((5, 20, 7), [(0, 1, 2, 5, 4, 7)], [0.9]), patch_zyx=(16, 16, 16))
    assert found["boxes"].tolist() == [[0, 1, 2, 5, 4, 7]]


def test_bad_input_is_refused() -> None:
    image = planted((16, 16, 16), [], [])
    with pytest.raises(ValueError, match=r"image has shape \(16, 16, 16\)"):
        detect_volume(BrightBoxes(), image[0], patch_zyx=(16, 16, 16))
    with pytest.raises(ValueError, match=r"valid has shape \(1, 16, 16\)"):
        detect_volume(BrightBoxes(), image, patch_zyx=(16, 16, 16), valid=np.ones((1, 16, 16), dtype=bool))
    with pytest.raises(ValueError, match="batch_size is 0"):
        detect_volume(BrightBoxes(), image, patch_zyx=(16, 16, 16), batch_size=0)
    detector = RetinaUNet(TinyPyramid(), classes=("a",), anchors_zyx=[[6, 6, 6]], levels=(1, 2), head_channels=16)
    image[0, 3, 3, 3] = np.nan
    with pytest.raises(ValueError, match=r"tiles starting at \[\(0, 0, 0\)\].*not finite"):
        detect_volume(detector, image, patch_zyx=(16, 16, 16))
    with pytest.raises(ValueError, match="18 voxels along x, wanted a multiple of 4"):
        detect_volume(detector, image, patch_zyx=(16, 16, 18))
