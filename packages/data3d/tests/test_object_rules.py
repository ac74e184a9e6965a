"""Objects found by rules: components of class masks, votes of several readers; what they give and what they refuse."""

import itertools
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import girih_data3d as d3
from girih_data3d.object_rules import Components, FoundObjects, ObjectRule, Votes, _components, tight, vote

SHAPE = (12, 14, 16)
AFFINE = np.diag([0.8, 0.9, 2.5, 1.0])
FLIPPED = np.array([[-0.79, 0.12, 0, 40], [0.12, 0.79, 0, -30], [0, 0, -2.0, 7], [0, 0, 0, 1]])
"""x runs to the left and is turned by 8.6 degrees, slices run downwards."""
NATIVE = d3.PrepareSpec(target_zyx_mm=None, crop=None, normalisation="none")
FULL = slice(0, None)


def write(folder: Path, array: np.ndarray, name: str, affine: np.ndarray = AFFINE) -> Path:
    d3.write_nifti(array, folder / name, affine=affine)
    return folder / name


def scan_of(folder: Path, affine: np.ndarray = AFFINE) -> xr.DataArray:
    return d3.read_scan(write(folder, np.ones(SHAPE, np.float32), "image.nii", affine))


def drawn(found: FoundObjects, shape: tuple[int, ...] = SHAPE) -> list[np.ndarray]:
    volumes = []
    for window, inside in found.masks:
        volume = np.zeros(shape, bool)
        volume[window] = inside
        volumes.append(volume)
    return volumes


def flood_fill(mask: np.ndarray) -> set[frozenset[tuple[int, ...]]]:
    """Components by breadth-first search over all 26 neighbours."""
    waiting, found = set(map(tuple, np.argwhere(mask).tolist())), set()
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]
    while waiting:
        queue, members = deque([waiting.pop()]), set()
        while queue:
            voxel = queue.popleft()
            members.add(voxel)
            for step in steps:
                near = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if near in waiting:
                    waiting.remove(near)
                    queue.append(near)
        found.add(frozenset(members))
    return found


def test_components_by_hand(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint16)
    labels[1:9, 1:12, 1:12] = 1  # the organ
    labels[2:4, 2:4, 2:4] = 2
    labels[4, 4, 4] = 2  # touches by its corner
    labels[7, 2:5, 9] = 2  # three voxels
    labels[6, 9, 2:4] = 2  # two: dropped
    labels[10, 1:3, 14:16] = 300
    rule = Components(write(tmp_path, labels, "l.nii.gz"), ((0, (2,)), (1, (300,))))
    assert isinstance(rule, ObjectRule)
    found = rule.find(scan_of(tmp_path))
    assert found.classes == [0, 0, 1]
    assert found.counts == {"components": 4, "dropped below 3 voxels": 1}
    assert [int(np.count_nonzero(inside)) for _, inside in found.masks] == [9, 3, 4]
    assert found.masks[0][0] == (slice(2, 5), slice(2, 5), slice(2, 5))
    for volume, value in zip(drawn(found), (2, 2, 300), strict=True):
        assert (labels[volume] == value).all()
    every = replace(rule, min_voxels=1).find(scan_of(tmp_path))
    assert len(every.masks) == 4
    assert every.counts == {"components": 4, "dropped below 1 voxels": 0}


@settings(max_examples=40)
@given(hnp.arrays(bool, st.tuples(*[st.integers(1, 5)] * 3), elements=st.booleans()))
def test_components_are_those_of_a_flood_fill(mask: np.ndarray) -> None:
    window = tuple(slice(7, 7 + n) for n in mask.shape)
    labels = np.pad(mask.astype(np.int32) * 3, [(7, 1)] * 3, constant_values=3)
    found = []
    for (z, y, x), inside in _components(labels, (3,), window):
        at = np.array([z.start, y.start, x.start]) - 7
        found.append(frozenset(map(tuple, (np.argwhere(inside) + at).tolist())))
    assert len(found) == len(set(found))
    assert set(found) == flood_fill(mask)


def test_groups_of_values_count_as_one_and_may_overlap(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint16)
    labels[2:6, 2:6, 2:6], labels[3:5, 3:5, 3:8], labels[8:10, 2:4, 2:4] = 1, 2**15, 1
    file = write(tmp_path, labels, "l.nii")
    found = Components(file, ((1, (1, 2**15)), (0, (2**15,)), (1, (7,)))).find(scan_of(tmp_path))
    assert found.classes == [1, 1, 0]
    assert found.counts["components"] == 3
    first = (labels > 0) & (np.arange(12)[:, None, None] < 7)
    np.testing.assert_array_equal(drawn(found), [first, (labels > 0) & ~first, labels == 2**15])


def test_a_label_outside_the_declared_ones(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:4, 2:4, 2:4], labels[5, 5, 5], labels[6, 6, 6] = 2, 7, 9
    file = write(tmp_path, labels, "l.nii")
    assert len(Components(file, ((0, (2,)),), known=(7, 9, 11)).find(scan_of(tmp_path)).masks) == 1
    with pytest.raises(d3.ScanError, match=r"l\.nii: label 7 \(2 such labels\), wanted 0 or one of \[1, 2\]"):
        Components(file, ((0, (2,)),), known=(0, 1)).find(scan_of(tmp_path))


def test_a_mask_is_cut_to_its_voxels() -> None:
    inside = np.zeros((4, 5, 6), bool)
    inside[1:3, 2, 3:6] = True
    window, found = tight(((slice(10, 14), slice(20, 25), slice(0, 6)), inside)) or pytest.fail("lost")
    assert window == (slice(11, 13), slice(22, 23), slice(3, 6))
    assert found.all()
    assert found.base is None  # no view that keeps a volume
    assert tight(((slice(0, 4), slice(0, 5), slice(0, 6)), np.zeros_like(inside))) is None
    assert vote([], 4, 0.5) is None


@settings(max_examples=60)
@given(
    hnp.arrays(bool, st.tuples(st.integers(1, 4), *[st.integers(1, 4)] * 3), elements=st.booleans()),
    st.integers(0, 3),
    st.sampled_from([0.25, 1 / 3, 0.5, 2 / 3, 0.75, 1, 0.1]),
)
def test_votes_are_the_mean_of_all_readers(masks: np.ndarray, absent: int, share: float) -> None:
    readers = len(masks) + absent
    everyone = np.concatenate([masks, np.zeros((absent, *masks.shape[1:]), bool)])
    wanted = np.mean(everyone, axis=0) >= share
    windows = [tuple(slice(5, 5 + n) for n in mask.shape) for mask in masks]
    agreed = vote(list(zip(windows, masks, strict=True)), readers, share)
    if agreed is None:
        assert not wanted.any()
        return
    window, inside = agreed
    volume = np.zeros([n + 10 for n in masks.shape[1:]], bool)
    volume[window] = inside
    np.testing.assert_array_equal(volume[tuple(slice(5, 5 + n) for n in masks.shape[1:])], wanted)
    assert np.count_nonzero(volume) == np.count_nonzero(wanted)
    for axis in range(3):  # tight
        lines = np.moveaxis(inside, axis, 0)
        assert lines[0].any()
        assert lines[-1].any()


def test_votes_by_hand(tmp_path: Path) -> None:
    masks = np.zeros((4, *SHAPE), np.uint8)
    masks[0, 2:4, 2:4, 2:6] = 1
    masks[1, 2:4, 2:4, 4:8] = 255  # any value above 0
    masks[2, 2:4, 2:4, 6:9] = 1  # touches what the first two agree on
    paths = [write(tmp_path, mask, f"{k}.nii") for k, mask in enumerate(masks)]
    scan = scan_of(tmp_path)
    objects = ((1, (paths[0], paths[1])), (0, (paths[2],)), (0, (paths[3],)))
    found = Votes(objects).find(scan)  # of two readers one is half
    assert found.classes == [1, 0]
    assert [window[2] for window, _ in found.masks] == [slice(2, 8), slice(6, 9)]
    assert found.counts == {"objects marked": 3, "dropped for want of votes": 1}
    found = Votes(objects, readers=4).find(scan)
    assert found.classes == [1]
    assert [window[2] for window, _ in found.masks] == [slice(4, 6)]
    assert found.counts == {"objects marked": 3, "dropped for want of votes": 2}
    assert Votes((), readers=4).find(scan) == FoundObjects([], [], dict.fromkeys(found.counts, 0))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_rules_on_files_with_flipped_axes(tmp_path: Path, suffix: str) -> None:
    image = write(tmp_path, np.ones(SHAPE, np.float32), "a.nii", FLIPPED)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 3:9, 4:8] = 1
    labels[7:9, 5, 5] = 1  # two voxels
    labels[9:11, 9:12, 2:4] = 2
    path = write(tmp_path, labels, "l.nii.gz", FLIPPED)
    if suffix == ".nrrd":
        sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / "l.nrrd"))
        path = tmp_path / "l.nrrd"
    source = d3.CaseSource("a", (image,), rule=Components(path, ((1, (1,)), (0, (2,)))))
    d3.prepare_many(d3.Dataset("x", ("one", "two"), (source,)), tmp_path / "out", d3.PrepareSpec(), workers=0)
    case = d3.Store.open(tmp_path / "out")["a"]
    assert case.truth is not None
    assert case.truth["boxes"] == [[2, 3, 4, 5, 9, 8], [9, 9, 2, 11, 12, 4]]  # of the file's array
    assert case.truth["labels"] == case.labels.tolist() == [1, 0]
    assert case.notes == {"objects_clipped": 0, "found": {"components": 3, "dropped below 3 voxels": 1}}
    assert case.label_kinds == ("instances",)
    assert not d3.verify(tmp_path / "out", level="decode").failed


def test_objects_that_touch_or_overlap_stay_apart(tmp_path: Path) -> None:
    one, other = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    one[2:6, 2:6, 2:6] = 1
    other[4:7, 4:7, 4:7] = 1
    files = [(0, (write(tmp_path, mask, f"{k}.nii"),)) for k, mask in enumerate((one, other))]
    source = d3.CaseSource("a", (write(tmp_path, np.ones(SHAPE, np.float32), "a.nii"),), rule=Votes(tuple(files)))
    d3.prepare_case(source, tmp_path / "out", NATIVE, classes=("c",))
    d3.prepare_many(d3.Dataset("x", ("c",), (source,)), tmp_path / "out", NATIVE, workers=0)
    case = d3.Store.open(tmp_path / "out")["a"]
    assert case.objects.layer.tolist() == [0, 1]
    assert case.voxels.tolist() == [64, 27]
    assert case.boxes.tolist() == [[2, 2, 2, 6, 6, 6], [4, 4, 4, 7, 7, 7]]


def test_a_rule_that_finds_nothing_labels_a_case_without_objects(tmp_path: Path) -> None:
    images = (write(tmp_path, np.ones(SHAPE, np.float32), "a.nii"),)
    empty = write(tmp_path, np.zeros(SHAPE, np.uint8), "l.nii")
    for name, rule in {"components": Components(empty, ((0, (2,)),)), "votes": Votes(())}.items():
        source = d3.CaseSource(name, images, rule=rule)
        d3.prepare_many(d3.Dataset("x", ("c",), (source,)), tmp_path / "out", NATIVE, workers=0)
        case = d3.Store.open(tmp_path / "out")[name]
        assert case.truth is not None
        assert (case.truth["boxes"], len(case.objects), case.label_kinds) == ([], 0, ("instances",))


@dataclass(frozen=True)
class Given:
    """A rule that gives back what it was told."""

    window: tuple[tuple[int, int], ...]
    classes: tuple[int, ...] = (0,)
    value: bool = True
    size: tuple[int, ...] | None = None

    def find(self, scan: xr.DataArray) -> FoundObjects:
        z, y, x = (slice(a, b) for a, b in self.window)
        size = self.size or [b - a for a, b in self.window]
        return FoundObjects([((z, y, x), np.full(size, self.value))], list(self.classes))


INSIDE = ((1, 3), (1, 3), (1, 3))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Given(INSIDE, (1,)), "object 0 has class 1, wanted 0 to 0"),
        (Given(INSIDE, (-1,)), "object 0 has class -1, wanted 0 to 0"),
        (Given(INSIDE, (0, 0)), "1 masks and 2 classes"),
        (Given(INSIDE, value=False), "its mask has no voxel"),
        (Given(((1, 3), (1, 3), (1, 17))), r"at \[\(1, 3\), \(1, 3\), \(1, 17\)\], wanted one inside the scan"),
        (Given(((-1, 1), (1, 3), (1, 3))), "wanted one inside the scan"),
        (Given(INSIDE, size=(2, 2, 3)), "a mask of shape"),
        (Components(Path("missing.nii"), ((0, (1,)),)), r"missing\.nii: not readable"),
    ],
)
def test_what_a_rule_may_not_do(tmp_path: Path, rule: ObjectRule, message: str) -> None:
    images = (write(tmp_path, np.ones(SHAPE, np.float32), "a.nii"),)
    source = d3.CaseSource("a", images, rule=rule)
    with pytest.raises(d3.ScanError, match=message):
        d3.prepare_case(source, tmp_path / "out", NATIVE, classes=("c",))
    assert not list((tmp_path / "out").glob("cases/*/*"))


def test_a_mask_in_a_wide_window_gets_a_tight_box(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Wide:
        def find(self, scan: xr.DataArray) -> FoundObjects:
            mask = np.zeros(SHAPE, bool)
            mask[3:5, 4:7, 5] = True
            return FoundObjects([((slice(0, 12), slice(0, 14), slice(0, 16)), mask)], [0])

    images = (write(tmp_path, np.ones(SHAPE, np.float32), "a.nii"),)
    source = d3.CaseSource("a", images, rule=Wide())
    d3.prepare_many(d3.Dataset("x", ("c",), (source,)), tmp_path / "out", NATIVE, workers=0)
    case = d3.Store.open(tmp_path / "out")["a"]
    assert case.truth is not None
    assert case.boxes.tolist() == case.truth["boxes"] == [[3, 4, 5, 5, 7, 6]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Components(Path("a"), ()), "0 groups, min_voxels 3: wanted 1 or more of both"),
        (lambda: Components(Path("a"), ((0, ()),)), r"groups\[0\] has class 0 and values \(\), wanted 0 or more and 1"),
        (lambda: Components(Path("a"), ((0, (2, 0)),)), r"groups\[0\] has class 0 and values \(2, 0\)"),
        (lambda: Components(Path("a"), ((-1, (1,)),)), r"groups\[0\] has class -1"),
        (lambda: Components(Path("a"), ((0, (1,)),), min_voxels=0), "1 groups, min_voxels 0"),
        (lambda: Votes(((0, ()),)), r"objects\[0\] has class 0 and 0 masks"),
        (lambda: Votes(((-1, (Path("a"),)),)), r"objects\[0\] has class -1"),
        (lambda: Votes(((0, (Path("a"), Path("b"))),), readers=1), r"objects\[0\] has 2 masks, wanted at most one per"),
        (lambda: Votes((), share=0), "share is 0, wanted above 0 and at most 1"),
        (lambda: Votes((), share=1.5), r"share is 1\.5"),
        (lambda: d3.CaseSource("a", (Path("i"),), (Path("l"),), rule=Votes(())), "both instances and rule"),
        (lambda: d3.CaseSource("a", (Path("i"),), objects=(), rule=Votes(())), "both objects and rule"),
    ],
)
def test_values_out_of_range(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
