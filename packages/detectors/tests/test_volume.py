"""Whole volumes, with a detector that finds bright cuboids exactly."""

import threading
import weakref
import zlib
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from girih_detectors import RetinaUNet, detect_volume
from girih_detectors.inference import MIRRORINGS, Merging, collect, merge, tile_grid, unmirror
from girih_detectors.inference.reading import READERS
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
    # 2 x 3 x 1 tiles: (24 - 16) / 8 + 1, ceil((26 - 16) / 8) + 1, padded
    assert seen == [(done, 6) for done in [*range(0, 6, batch_size), 6]]
    assert len(detector.calls) == (len(seen) - 1) * (8 if mirror else 1)


def test_answer_does_not_depend_on_the_batch_size_but_for_rounding_in_the_network() -> None:
    detector, image = small_network(), noise(20, 30, 16)
    one = detect_volume(detector, image, patch_zyx=(16, 16, 16), mirror=False, batch_size=1)
    four = detect_volume(detector, image, patch_zyx=(16, 16, 16), mirror=False, batch_size=4)
    np.testing.assert_allclose(one["boxes"], four["boxes"], atol=1e-4)
    np.testing.assert_allclose(one["scores"], four["scores"], atol=1e-6)
    assert np.array_equal(one["labels"], four["labels"])
    assert (one["boxes"] >= 0).all()
    assert (one["boxes"] <= [20, 30, 16] * 2).all()
    assert (np.diff(one["scores"]) <= 0).all()


def test_tiles_and_merging_do_not_depend_on_the_batch_size_at_all() -> None:  # many equal scores: the order counts
    image = np.zeros((1, 40, 36, 20), dtype=np.float32)
    rng = np.random.default_rng(0)
    for z, y, x in product(range(0, 40, 5), range(0, 36, 5), range(0, 20, 5)):
        image[0, z : z + 3, y : y + 2, x : x + 4] = rng.choice([0.5, 0.7, 10.7])
    settings = {"patch_zyx": (16, 12, 8), "overlap": 0.4}
    wanted = collect(BrightBoxes(), image, batch_size=1, pool=150, **settings)
    for batch_size in (2, 5, 1000):
        found = collect(BrightBoxes(), image, batch_size=batch_size, pool=150, **settings)
        for one, other in zip(found, wanted, strict=True):
            assert same(one, other)
            assert torch.equal(one["weights"], other["weights"])
        assert same(
            merge(found, (40, 36, 20)), detect_volume(BrightBoxes(), image, merging=Merging(pool=150), **settings)
        )


def test_a_volume_of_one_tile_is_what_detect_finds() -> None:
    detector = small_network()
    images, _ = toy_batch((2,))
    untouched = Merging(tile_iou=1.0, ensemble_iou=1.0)  # no overlap is greater
    whole = detect_volume(detector, images[0].numpy(), patch_zyx=(24, 24, 24), mirror=False, merging=untouched)
    (alone,) = detector.eval().detect(images)
    assert len(alone["scores"]) == 100
    assert same(whole, {key: value.numpy() for key, value in alone.items()})


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


def small_network(seed=0) -> RetinaUNet:
    torch.manual_seed(seed)
    anchors = [[4, 4, 4], [6, 6, 6]]
    return RetinaUNet(TinyPyramid(), classes=("a", "b"), anchors_zyx=anchors, levels=(1, 2), head_channels=16)


def noise(*shape) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)


def same(found, wanted) -> bool:
    return all(np.array_equal(found[key], wanted[key]) for key in ("boxes", "scores", "labels"))


class Counting:
    """An image that knows which tiles were read."""

    def __init__(self, image, reads=lambda index: None) -> None:
        self.image, self.reads, self.seen = image, reads, []
        self.shape, self.dtype = image.shape, image.dtype

    def __getitem__(self, index):
        self.seen.append(tuple(part.start for part in index[1:]))
        self.reads(index)
        return self.image[index]


def test_candidates_are_kept_by_model_and_mirroring_and_merge_to_the_detections() -> None:
    image, models = Counting(noise(20, 24, 16)), [small_network(0), small_network(1)]
    raw = collect(models, image, patch_zyx=PATCH, pool=250)
    assert len(image.seen) == len(set(image.seen)) == 18  # every tile once for 2 x 8
    assert len(raw) == 16
    for i, one in enumerate(raw):
        shapes = [tuple(one[key].shape) for key in ("boxes", "scores", "labels", "weights")]
        assert shapes == [(250, 6), (250,), (250,), (250,)]
        wanted = by_hand(models[i // 8], image.image, MIRRORINGS[i % 8], 250)
        assert same(one, wanted)
        torch.testing.assert_close(one["weights"], wanted["weights"])
    together = detect_volume(models, image, patch_zyx=PATCH, merging=Merging(pool=250))
    assert same(merge(raw, (20, 24, 16), Merging(pool=250)), together)


PATCH = (16, 12, 8)


def by_hand(model, image, axes, pool):
    """One mirroring of all tiles, tile by tile and box by box."""
    rows, sides = [], torch.tensor(PATCH)
    for z, y, x in tile_grid(image.shape[1:], PATCH, 0.5):
        tile = torch.from_numpy(image[None, :, z : z + 16, y : y + 12, x : x + 8].copy())
        (found,) = model.eval().detect(tile.flip([axis + 2 for axis in axes]))
        for box, score, label in zip(*(found[key] for key in ("boxes", "scores", "labels")), strict=True):
            low, high = box[:3].clone(), box[3:].clone()
            for axis in axes:
                low[axis], high[axis] = PATCH[axis] - box[axis + 3], PATCH[axis] - box[axis]
            off = ((low + high - sides) / 2).norm() / (sides / 2).norm()
            start = torch.tensor([z, y, x])
            rows.append((torch.cat([low + start, high + start]), score, label, 1 - max(off - 0.5, torch.zeros(()))))
    rows.sort(key=lambda row: -row[1])  # stable
    columns = (torch.stack(column) for column in zip(*rows[:pool], strict=True))
    return dict(zip(("boxes", "scores", "labels", "weights"), columns, strict=True))


def test_an_ensemble_of_one_model_is_the_model() -> None:
    model, image = small_network(), noise(20, 24, 16)
    settings = {"patch_zyx": (16, 16, 16), "batch_size": 4, "merging": Merging(max_detections=40)}
    alone = detect_volume(model, image, **settings)
    for ensemble in ([model], nn.ModuleList([model]), (model,), iter([model])):
        assert same(detect_volume(ensemble, image, **settings), alone)
    plain = detect_volume(model, image, mirror=False, **settings)
    assert same(detect_volume([model], image, mirror=False, **settings), plain)
    # 40 boxes of 8 or 16 mirrorings: both fit into the pool of 1000
    twice = detect_volume([model, model], image, **settings)
    for key in ("boxes", "scores", "labels"):
        np.testing.assert_allclose(twice[key], alone[key], rtol=1e-5, atol=1e-4)
    assert model.training


def test_of_two_models_each_finds_what_the_other_misses() -> None:
    class Half(BrightBoxes):
        def __init__(self, label) -> None:
            super().__init__()
            self.label = label

        def _one(self, image):
            found = super()._one(image)
            return {key: value[found["labels"] == self.label] for key, value in found.items()}

    image = planted((24, 26, 13), OBJECTS, VALUES)
    found = detect_volume([Half(0), Half(1)], image, patch_zyx=(16, 16, 16), mirror=False)
    assert sorted(found["labels"].tolist()) == [0, 0, 1]
    np.testing.assert_allclose(found["scores"], [0.45, 0.4, 0.35], atol=1e-5)  # one of two models is missing


@given(
    shape=st.tuples(*[st.integers(4, 30)] * 3), flips=st.sampled_from(MIRRORINGS), seed=st.integers(0, 99), mirror=...
)
@settings(max_examples=25)
def test_a_mirrored_image_has_the_mirrored_objects(shape, flips, seed, mirror: bool) -> None:
    rng = np.random.default_rng(seed)
    low = np.array([rng.integers(0, n - 2) for n in shape])
    high = np.minimum(low + rng.integers(1, 8, 3), shape)
    image = planted(shape, [(*low, *high)], [0.9])
    settings = {"patch_zyx": (16, 16, 16), "batch_size": 3, "mirror": mirror}
    straight = detect_volume(BrightBoxes(), image, **settings)
    turned = detect_volume(BrightBoxes(), np.flip(image, [axis + 1 for axis in flips]), **settings)
    assert straight["boxes"][0].tolist() == [*low, *high]
    back = unmirror(torch.from_numpy(turned["boxes"]), flips, shape)
    assert back[0].tolist() == [*low, *high]


@pytest.mark.parametrize("axes", [(2,), (0, 1), (0, 1, 2)])
def test_a_mirrored_image_has_the_mirrored_boxes_of_a_network(axes) -> None:  # tiles and mirrorings mirror each other
    model, image = small_network(), noise(20, 24, 16)
    straight = detect_volume(model, image, patch_zyx=(16, 16, 16), batch_size=4)
    turned = detect_volume(model, np.flip(image, [a + 1 for a in axes]).copy(), patch_zyx=(16, 16, 16), batch_size=4)
    back = unmirror(torch.from_numpy(turned["boxes"]), axes, (20, 24, 16)).numpy()
    assert len(back) == 100
    order = [
        np.lexsort(np.round([*one.T, scores], 3))
        for one, scores in ((straight["boxes"], straight["scores"]), (back, turned["scores"]))
    ]
    np.testing.assert_allclose(back[order[1]], straight["boxes"][order[0]], atol=2e-3)
    np.testing.assert_allclose(turned["scores"], straight["scores"], atol=1e-5)


def test_every_module_is_in_the_mode_it_was_in() -> None:
    model = small_network().train()
    model.pyramid.down[0].eval()  # frozen
    modes = [module.training for module in model.modules()]
    detect_volume([model, model], noise(16, 16, 16), patch_zyx=(16, 16, 16), mirror=False)
    with pytest.raises(ValueError, match="not finite"):
        detect_volume(model, noise(16, 16, 16) * np.nan, patch_zyx=(16, 16, 16))
    assert [module.training for module in model.modules()] == modes


def test_models_and_tiles_go_to_the_device() -> None:
    class Elsewhere(BrightBoxes):
        def detect(self, images):
            assert not torch.is_grad_enabled()
            seen.append((self.anything.device.type, images.device.type, tuple(images.shape)))
            return [{"boxes": torch.zeros(0, 6), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}] * len(
                images
            )

    seen, image = [], noise(16, 16, 24)
    found = detect_volume([Elsewhere(), Elsewhere()], image, patch_zyx=(16, 16, 16), mirror=False, device="meta")
    assert seen == [("meta", "meta", (1, 1, 16, 16, 16))] * 4
    assert len(found["scores"]) == 0
    seen.clear()
    detect_volume([Elsewhere().to("meta"), Elsewhere()], image, patch_zyx=(16, 16, 16), mirror=False, batch_size=2)
    assert [each[:2] for each in seen] == [("meta", "meta"), ("cpu", "cpu")]  # each where it is


def test_under_autocast_boxes_are_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = detect_volume(small_network(), noise(20, 16, 16), patch_zyx=(16, 16, 16), batch_size=2, mirror=False)
    assert (found["boxes"].dtype, found["scores"].dtype) == (np.float32, np.float32)
    assert len(found["boxes"]) > 0


def test_reading_overlaps_the_network() -> None:
    second_is_read = threading.Event()

    class Waits(BrightBoxes):
        def detect(self, images):
            assert second_is_read.wait(timeout=30)  # while the first tile is in the network
            return super().detect(images)

    image = Counting(noise(16, 16, 24) * 0, lambda index: second_is_read.set() if index[3].start else None)
    detect_volume(Waits(), image, patch_zyx=(16, 16, 16), mirror=False)
    assert image.seen == [(0, 0, 0), (0, 0, 8)]


@pytest.mark.parametrize("kind", [OSError, ValueError, RuntimeError, KeyError, IndexError, EOFError, zlib.error])
def test_a_tile_that_cannot_be_read_is_named(kind) -> None:
    def fail(index) -> None:
        if index[1].start == 8:
            raise kind("the disk is gone")

    model = BrightBoxes().train()
    wanted = r"^the tile that starts at \(8, 0, 0\) .* cannot be read: .*the disk is gone"
    with pytest.raises(ValueError, match=wanted) as e:
        detect_volume(model, Counting(noise(24, 16, 16) * 0, fail), patch_zyx=(16, 16, 16))
    assert isinstance(e.value.__cause__, kind)
    assert model.training
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]


def test_a_tile_is_let_go_before_room_is_made_for_the_next() -> None:
    class Remembers(BrightBoxes):
        def detect(self, images):
            seen.append(weakref.ref(images))
            return super().detect(images)

    def read(index) -> None:
        tile = index[3].start // 16
        assert tile <= READERS or seen[tile - READERS - 1]() is None

    seen = []
    detect_volume(
        Remembers(), Counting(noise(16, 16, 256) * 0, read), patch_zyx=(16, 16, 16), overlap=0.0, mirror=False
    )
    assert len(seen) == 16


def test_a_tile_of_another_shape_is_named() -> None:
    class Short(Counting):
        def __getitem__(self, index):
            return super().__getitem__(index)[:, :1]

    with pytest.raises(ValueError, match=r"\(0, 0, 0\) .* returned \(1, 1, 16, 16\) voxels, wanted \(1, 16, 16, 16\)"):
        detect_volume(BrightBoxes(), Short(noise(24, 16, 16)), patch_zyx=(16, 16, 16))


def test_output_that_is_not_finite_names_model_and_tiles() -> None:
    image = planted((24, 16, 16), [], [])
    image[0, 20] = np.nan
    with pytest.raises(
        ValueError, match=r"^model 2 of 2, tiles starting at \[\(8, 0, 0\)\].* class scores are not finite"
    ):
        detect_volume([BrightBoxes(), small_network()], image, patch_zyx=(16, 16, 16))
