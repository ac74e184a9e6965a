"""Objects labelled three ways: masks, boxes, points with a diameter; where they end up, and what is refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import girih_data3d as d3
from girih_data3d.instances import stack_masks

SHAPE = (12, 14, 16)
OBLIQUE = np.array([[-0.79, 0.12, 0, 40], [0.12, 0.79, 0, -30], [0, 0, 2.0, 7], [0, 0, 0, 1]])
"""x runs to the left and is turned by 8.6 degrees; 0.8 x 0.8 x 2 mm."""
NATIVE = d3.PrepareSpec(target_zyx_mm=None, crop=None, normalisation="none")


def write(folder: Path, array: np.ndarray, name: str, affine: np.ndarray) -> Path:
    d3.write_nifti(array, folder / name, affine=affine)
    return folder / name


def full(folder: Path, affine: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> tuple[Path, ...]:
    return (write(folder, np.ones(shape, np.float32), "a.nii", affine),)


def prepared_case(
    folder: Path, source: d3.CaseSource, spec: d3.PrepareSpec = NATIVE, classes: tuple[str, ...] = ("c",)
) -> d3.Case:
    report = d3.prepare_many(d3.Dataset("x", classes, (source,)), folder / "out", spec, workers=0)
    assert not report.failed, report.failed
    return d3.Store.open(folder / "out")[source.case_id]


ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
BOX = (2, 3, 4, 6, 9, 8)


@pytest.mark.parametrize("number", range(0, 48, 5))  # reading: all 48 in test_read
def test_masks_and_boxes_return_to_the_source_orientation(tmp_path: Path, number: int) -> None:
    order, signs = ORIENTATIONS[number]
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * signs * (1.0, 2.0, 3.0)
    affine[:3, 3] = 5, 6, 7
    labels = np.zeros(SHAPE, np.uint8)  # (z, y, x) of the file
    labels[2:6, 3:9, 4:8] = 1
    image, mask = full(tmp_path, affine), write(tmp_path, labels, "l.nii", affine)
    spec = d3.PrepareSpec(target_zyx_mm=(1, 1, 1))
    cases = []
    for name, source in {
        "mask": d3.CaseSource("a", image, (mask,)),
        "box": d3.CaseSource("a", image, objects=(d3.ObjectLabel(0, box_zyx=BOX),)),
    }.items():
        (tmp_path / name).mkdir()
        cases.append(prepared_case(tmp_path / name, source, spec))
    for case in cases:
        assert case.truth is not None
        assert case.truth["boxes"] == [list(BOX)]
        assert case.truth["shape_zyx"] == list(SHAPE)
        hull = d3.boxes_to_ras(case.boxes.astype(np.float64), case.affine)
        np.testing.assert_allclose(hull, case.truth["boxes_ras_mm"], atol=1e-3)
        restored = d3.move_boxes(case.boxes.astype(np.float64), case.affine, np.array(case.prepared["source_affine"]))
        np.testing.assert_allclose(restored, case.truth["boxes"], atol=1e-3)
    ras = d3.ObjectLabel(0, box_ras_mm=tuple(cases[0].truth["boxes_ras_mm"][0]))
    again = prepared_case(tmp_path, d3.CaseSource("a", image, objects=(ras,)), spec)
    np.testing.assert_allclose(again.boxes, cases[0].boxes, atol=1e-4)
    assert (cases[0].label_kinds, again.label_kinds) == (("instances",), ())


def test_box_in_voxels_by_hand(tmp_path: Path) -> None:
    image = full(tmp_path, np.diag([-2.0, 1, 4, 1]))  # x runs to the left: canonical x = 16 - x
    case = prepared_case(
        tmp_path,
        d3.CaseSource("a", image, objects=(d3.ObjectLabel(0, box_zyx=(1.5, 2, 3, 4, 5.25, 7)),)),
        d3.PrepareSpec(target_zyx_mm=(2, 1, 1), crop=None, normalisation="none"),
    )
    assert case.boxes.tolist() == [[3, 2, 18, 8, 5.25, 26]]
    assert (case.objects.layer.tolist(), case.objects.voxels.tolist()) == ([-1], [0])
    assert case.truth is not None
    assert case.truth["boxes"] == [[1.5, 2, 3, 4, 5.25, 7]]
    assert "centers_ras_mm" not in case.truth


def test_sphere_by_hand(tmp_path: Path) -> None:
    image = full(tmp_path, np.diag([2.0, 1, 4, 1]))  # voxel centres at (4 z, y, 2 x) mm
    label = d3.ObjectLabel(0, center_ras_mm=(10, 7, 20), diameter_mm=6.0)
    case = prepared_case(
        tmp_path,
        d3.CaseSource("a", image, objects=(label,)),
        d3.PrepareSpec(target_zyx_mm=(2, 1, 1), crop=None, normalisation="none"),
    )
    # scan: centre (5.5, 7.5, 5.5) in voxel edges, radii (0.75, 3, 1.5); prepared: z twice, x twice as fine
    assert case.boxes.tolist() == [[9.5, 4.5, 8, 12.5, 10.5, 14]]
    np.testing.assert_allclose(case.objects.centres_zyx, [[11, 7.5, 11]], atol=1e-12)
    np.testing.assert_allclose(case.objects.radii_zyx, [[1.5, 3, 3]], atol=1e-12)
    assert case.truth is not None
    np.testing.assert_allclose(case.truth["boxes"], [[4.75, 4.5, 4, 6.25, 10.5, 7]])
    np.testing.assert_allclose(case.truth["boxes_ras_mm"], [[7, 4, 17, 13, 10, 23]])
    assert case.truth["centers_ras_mm"] == [[10, 7, 20]]
    assert case.truth["diameters_mm"] == [6.0]


def test_sphere_on_oblique_axes_touches_its_box(tmp_path: Path) -> None:
    image = full(tmp_path, OBLIQUE)
    centre = d3.voxel_to_world(OBLIQUE, np.array([[6, 7, 8.0]]))[0]
    label = d3.ObjectLabel(0, center_ras_mm=tuple(centre.tolist()), diameter_mm=5)
    case = prepared_case(tmp_path, d3.CaseSource("a", image, objects=(label,)), d3.PrepareSpec(crop=None))
    points = np.random.default_rng(0).normal(size=(20_000, 3))
    surface = centre + 2.5 * points / np.linalg.norm(points, axis=1, keepdims=True)
    edges = d3.world_to_voxel(case.affine, surface) + 0.5
    np.testing.assert_allclose(case.boxes[0], [*edges.min(axis=0), *edges.max(axis=0)], atol=2e-3)


@pytest.mark.parametrize("kind", ["mask", "box", "sphere"])
def test_crop_never_cuts_an_object(tmp_path: Path, kind: str) -> None:
    image, labels = np.zeros((2, 8, 10, 12), np.float32)
    image[3:5, 4:6, 5:7] = 1
    labels[1, 1, 1], labels[6, 8, 10] = 1, 2
    affine = np.diag([0.8, 1.0, 2.5, 1])
    boxes = ((1, 1.25, 1, 2, 2, 2), (6, 8, 10, 6.5, 8.75, 10.25))
    centres = ((0.8, 1.0, 2.5), (8.0, 8.0, 15.0))
    images = (write(tmp_path, image, "a.nii", affine),)
    source = {
        "mask": d3.CaseSource("a", images, (write(tmp_path, labels, "l.nii", affine),)),
        "box": d3.CaseSource("a", images, objects=tuple(d3.ObjectLabel(0, box_zyx=box) for box in boxes)),
        "sphere": d3.CaseSource(
            "a", images, objects=tuple(d3.ObjectLabel(0, center_ras_mm=c, diameter_mm=0.7) for c in centres)
        ),
    }[kind]
    case = prepared_case(tmp_path, source, d3.PrepareSpec(target_zyx_mm=None))
    assert case.prepared["crop_start_zyx"] == [1, 1, 1]
    assert case.shape == (1, 6, 8, 10)
    assert ((case.boxes[:, :3] >= 0) & (case.boxes[:, 3:] <= case.shape[1:])).all()
    if kind == "mask":
        assert case.boxes.tolist() == [[0, 0, 0, 1, 1, 1], [5, 7, 9, 6, 8, 10]]
        assert case.voxels.tolist() == [1, 1]


def test_parts_outside_the_scan_are_clipped_and_counted(tmp_path: Path) -> None:
    image = full(tmp_path, np.eye(4))
    labels = (
        d3.ObjectLabel(0, box_zyx=(-0.5, 2, 2, 3, 4, 17)),
        d3.ObjectLabel(0, box_zyx=(1, 1, 1, 12, 14, 16)),
        d3.ObjectLabel(0, center_ras_mm=(0, 5, 5), diameter_mm=4.0),
    )
    case = prepared_case(tmp_path, d3.CaseSource("a", image, objects=labels))
    assert case.boxes.tolist() == [[0, 2, 2, 3, 4, 16], [1, 1, 1, 12, 14, 16], [3.5, 3.5, 0, 7.5, 7.5, 2.5]]
    assert case.objects.centres_zyx[2].tolist() == [5.5, 5.5, 0.5]
    for box in ((-1.1, 2, 2, 3, 4, 5), (1, 2, 2, 3, 4, 18)):
        source = d3.CaseSource("b", image, objects=(d3.ObjectLabel(0, box_zyx=box),))
        with pytest.raises(d3.ScanError, match=r"objects\[0\] at .* reaches out of the image's array by more than a v"):
            d3.prepare_case(source, tmp_path / "more", NATIVE, classes=("c",))
    record = json.loads((case.folder / "zarr.json").read_text())["attributes"]["girih"]
    assert record["notes"] == {"objects_clipped": 2, "found": {}}
    assert case.truth is not None
    assert case.truth["boxes"] == case.boxes.tolist()


@pytest.mark.parametrize(
    "outside",
    [
        {"box_zyx": (-3, 2, 2, 0, 4, 4)},
        {"box_zyx": (2, 14.5, 2, 3, 16, 4)},
        {"box_ras_mm": (2, 3, 500, 4, 6, 510)},
        {"center_ras_mm": (-40, 0, 0), "diameter_mm": 9},
        {"center_ras_mm": (5, 5, 5), "diameter_mm": 1e-3},
    ],
)
def test_object_outside_the_scan_is_an_error(tmp_path: Path, outside: dict[str, Any]) -> None:
    labels = (d3.ObjectLabel(0, box_zyx=(0, 0, 0, 1, 1, 1)), d3.ObjectLabel(0, **outside))
    with pytest.raises(d3.ScanError, match=r"case 'a': objects\[1\] at \[.*\] is the box .* of shape \(12, 14, 16\)"):
        d3.prepare_case(
            d3.CaseSource("a", full(tmp_path, np.eye(4)), objects=labels), tmp_path / "out", NATIVE, classes=("c",)
        )
    assert not list((tmp_path / "out").glob("cases/*/*"))


def test_objects_to_ignore_come_last_and_stay_in_the_truth(tmp_path: Path) -> None:
    labels = (
        d3.ObjectLabel(1, ignore=True, box_zyx=(0, 0, 0, 1, 1, 1)),
        d3.ObjectLabel(0, box_zyx=(1, 1, 1, 2, 2, 2)),
    )
    source = d3.CaseSource("a", full(tmp_path, np.eye(4)), objects=labels)
    case = prepared_case(tmp_path, source, classes=("c", "d"))
    assert case.boxes.tolist() == [[1, 1, 1, 2, 2, 2]]
    assert (case.objects.labels.tolist(), case.objects.ignore.tolist()) == ([0, 1], [False, True])
    assert case.truth is not None
    assert (case.truth["labels"], case.truth["ignore"]) == ([0, 1], [False, True])
    with pytest.raises(d3.ScanError, match=r"objects\[0\] has class 1, wanted 0 to 0"):
        d3.prepare_case(source, tmp_path / "one", NATIVE, classes=("c",))


def test_empty_is_not_unlabelled(tmp_path: Path) -> None:
    image = full(tmp_path, np.eye(4))
    empty = write(tmp_path, np.zeros(SHAPE, np.uint8), "l.nii", np.eye(4))
    for name, source, kinds in (
        ("list", d3.CaseSource("a", image, objects=()), ()),
        ("mask", d3.CaseSource("a", image, (empty,)), ("instances",)),
        ("none", d3.CaseSource("a", image), ()),
    ):
        (tmp_path / name).mkdir()
        case = prepared_case(tmp_path / name, source)
        assert case.boxes.shape == (0, 6)
        assert case.label_kinds == kinds
        assert (case.truth is None) == (name == "none")
        if case.truth is not None:
            assert case.truth["boxes"] == case.truth["boxes_ras_mm"] == case.truth["labels"] == []


def test_overlapping_objects_of_two_files_stay_separate(tmp_path: Path) -> None:
    one, two = np.zeros((2, *SHAPE), np.uint8)
    one[2:8, 2:8, 2:8] = 4  # 216 voxels
    one[9:11, 2:4, 2:4] = 2  # 8 voxels, on its own
    two[4:6, 4:6, 4:10] = 3  # 24 voxels, 16 of them inside object 4
    files = tuple(write(tmp_path, array, f"{i}.nii", np.eye(4)) for i, array in enumerate((one, two)))
    case = prepared_case(tmp_path, d3.CaseSource("a", full(tmp_path, np.eye(4)), files, ignore=(2,)))
    assert case.objects.boxes.tolist() == [[4, 4, 4, 6, 6, 10], [2, 2, 2, 8, 8, 8], [9, 2, 2, 11, 4, 4]]
    assert case.objects.voxels.tolist() == [24, 216, 8]
    assert case.objects.layer.tolist() == [1, 0, 0]
    low, high = case.read_instance_layers((0, 0, 0), SHAPE)
    np.testing.assert_array_equal(low, np.where(one == 4, 2, np.where(one == 2, 3, 0)))
    np.testing.assert_array_equal(high, two == 3)
    seen = case.read_label_patch("instances", (0, 0, 0), SHAPE)
    np.testing.assert_array_equal(seen, np.where(high > 0, high, low))
    assert case.truth is not None
    assert case.truth["boxes"] == case.objects.boxes.tolist()


def test_one_number_in_two_files_is_an_error(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 0, 0] = 5
    files = tuple(write(tmp_path, labels, f"{i}.nii", np.eye(4)) for i in range(2))
    with pytest.raises(d3.ScanError, match=r"1\.nii: object 5 is in another label file"):
        d3.prepare_case(d3.CaseSource("a", full(tmp_path, np.eye(4)), files), tmp_path / "out", NATIVE, classes=("c",))


@pytest.mark.parametrize(
    ("classes", "given", "ignore", "message"),
    [
        (("a", "b"), {}, (), "object 3 has no class in instance_classes"),
        (("a",), {3: 0, 4: 0}, (), "object 4 has a class, but no voxel"),
        (("a",), {3: 1}, (), "object 3 has class 1, wanted 0 to 0"),
        (("a",), {}, (), "object 3 has no class in instance_classes"),  # {}: there is none
        (("a",), None, (9,), "object 9 is to be ignored, but has no voxel"),
    ],
)
def test_masks_and_classes_have_to_agree(
    tmp_path: Path, classes: tuple[str, ...], given: dict[int, int] | None, ignore: tuple[int, ...], message: str
) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:5, 3:5, 3:5] = 3
    source = d3.CaseSource(
        "a", full(tmp_path, np.eye(4)), (write(tmp_path, labels, "l.nii", np.eye(4)),), given, ignore
    )
    with pytest.raises(d3.ScanError, match=message):
        d3.prepare_case(source, tmp_path / "out", NATIVE, classes=classes)
    assert not list((tmp_path / "out").glob("cases/*/*"))


def test_a_source_is_labelled_one_way(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both instances and objects"):
        d3.CaseSource("a", (tmp_path,), (tmp_path,), objects=())
    with pytest.raises(ValueError, match="no instances file"):
        d3.CaseSource("a", (tmp_path,), ignore=(1,))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.tuples(st.integers(0, 8), st.integers(1, 8))] * 3), max_size=8))
def test_layers_keep_every_voxel_and_show_the_smaller(boxes: list[tuple[tuple[int, int], ...]]) -> None:
    masks = []
    for box in boxes:
        z, y, x = (slice(a, a + n) for a, n in box)
        masks.append(((z, y, x), np.ones([n for _, n in box], bool)))
    layers = stack_masks(masks, (16, 16, 16))
    place = {}
    for k, (window, inside) in enumerate(masks):
        found = [level for level, layer in enumerate(layers) if (layer == k + 1).any()]
        assert len(found) == 1
        place[k] = found[0]
        assert (layers[found[0]][window] == k + 1).all()
        assert np.count_nonzero(layers[found[0]] == k + 1) == inside.size
    for (a, (at_a, in_a)), (b, (at_b, in_b)) in itertools.combinations(enumerate(masks), 2):
        apart = any(s.stop <= t.start or t.stop <= s.start for s, t in zip(at_a, at_b, strict=True))
        if not apart:
            assert place[a] != place[b]
            if in_a.size != in_b.size:
                assert (place[a] > place[b]) == (in_a.size < in_b.size)
    assert len(layers) <= max(1, len(masks))
