"""Objects labelled by boxes and spheres that get masks: which voxels, where the boxes end up, what the truth keeps."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import girih_data3d as d3
from girih_data3d.annotations import objects_on_grid, read_annotations
from girih_data3d.painting import paint_mask
from girih_data3d.prepare import choose_grid

SHAPE = (12, 14, 16)
OBLIQUE = np.array([[-0.79, 0.12, 0, 40], [0.12, 0.79, 0, -30], [0, 0, 2.0, 7], [0, 0, 0, 1]])
"""x runs to the left and is turned by 8.6 degrees; 0.8 x 0.8 x 2 mm."""
NATIVE = d3.PrepareSpec(target_zyx_mm=None, crop=None, normalisation="none")


def prepared_case(folder: Path, affine: np.ndarray, spec: d3.PrepareSpec = NATIVE, **source: object) -> d3.Case:
    d3.write_nifti(np.ones(SHAPE, np.float32), folder / "a.nii", affine=affine)
    cases = (d3.CaseSource("a", (folder / "a.nii",), **source),)  # type: ignore[arg-type]
    report = d3.prepare_many(d3.Dataset("x", ("c", "d"), cases), folder / "out", spec, workers=0)
    assert not report.failed, report.failed
    assert not d3.verify(folder / "out", level="decode").failed
    return d3.Store.open(folder / "out")["a"]


def volume_of(box: tuple[float, ...], paint: str, shape: tuple[int, int, int] = (6, 7, 8)) -> np.ndarray:
    out = np.zeros(shape, bool)
    window, inside = paint_mask(np.array(box, np.float64), shape, paint)  # type: ignore[arg-type]
    out[window] = inside
    return out


def test_voxels_by_hand() -> None:
    # radii 1.5, 1.5, 1.5 around (2.5, 2.5, 2.5): centres at distance 0, 1 and sqrt(2) are inside, sqrt(3) is not
    ball = volume_of((1, 1, 1, 4, 4, 4), "ellipsoid")
    assert np.count_nonzero(ball) == 1 + 6 + 12
    assert np.argwhere(ball).min(axis=0).tolist() == [1, 1, 1]
    # a box holds the centres from its low edge on to below its high edge
    box = volume_of((0.5, 1, 1.4, 2.5, 2.2, 3.6), "box")
    assert np.argwhere(box).tolist() == [[z, 1, x] for z in (0, 1) for x in (1, 2, 3)]
    # centres on the surface of an ellipsoid are inside: radii 1, 2, 3 around (3.5, 3.5, 3.5)
    tips = volume_of((2.5, 1.5, 0.5, 4.5, 5.5, 6.5), "ellipsoid")
    assert [tips[2, 3, 3], tips[4, 3, 3], tips[3, 1, 3], tips[3, 5, 3], tips[3, 3, 0], tips[3, 3, 6]] == [True] * 6


@pytest.mark.parametrize("paint", ["ellipsoid", "box"])
@pytest.mark.parametrize(
    ("box", "voxel"),
    [
        ((2.9, 3.1, 4.1, 3.05, 3.2, 4.3), [2, 3, 4]),  # its middle is at 2.975
        ((2.6, 0, 0, 3.4, 0.4, 0.4), [3, 0, 0]),
        ((-9, -9, -9, 0.02, 0.3, 0.01), [0, 0, 0]),  # reaches into the corner
        ((5.98, 6.9, 7.9, 20, 20, 20), [5, 6, 7]),
    ],
)
def test_an_object_too_small_for_a_centre_gets_one_voxel(box: tuple[float, ...], voxel: list[int], paint: str) -> None:
    assert np.argwhere(volume_of(box, paint)).tolist() == [voxel]


@settings(max_examples=60)
@given(
    st.tuples(*[st.floats(-4, 9)] * 3),
    st.tuples(*[st.floats(0.1, 9)] * 3),
    st.sampled_from(["ellipsoid", "box"]),
)
def test_voxels_are_those_whose_centres_are_inside(
    low: tuple[float, ...], sides: tuple[float, ...], paint: str
) -> None:
    box = np.array([*low, *(np.array(low) + sides)])
    shape = (6, 7, 8)
    if (np.minimum(box[3:], shape) - np.maximum(box[:3], 0)).min() < 0.01:
        return
    found = volume_of(tuple(box.tolist()), paint)
    centres = np.moveaxis(np.indices(shape), 0, -1) + 0.5
    scaled = (centres - (box[:3] + box[3:]) / 2) / ((box[3:] - box[:3]) / 2)
    size = np.linalg.norm(scaled, axis=-1) if paint == "ellipsoid" else np.abs(scaled).max(axis=-1)
    spans = [[box[axis] <= k + 0.5 < box[axis + 3] for k in range(n)] for axis, n in enumerate(shape)]
    if not (all(map(any, spans)) and (size <= 1).any()):
        assert found.any()
        return  # thinner than a voxel: see the next test
    clear = np.abs(size - 1) > 1e-5
    if paint == "ellipsoid":
        clear &= ~axes_of(box, shape)
    np.testing.assert_array_equal(found[clear], (size <= 1)[clear])


def axes_of(box: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the voxels on the lines along the axes through the one around a box's centre."""
    away = np.indices(shape) != np.floor((box[:3] + box[3:]) / 2).reshape(3, 1, 1, 1)
    along: np.ndarray = np.count_nonzero(away, axis=0) <= 1
    return along


@settings(max_examples=60)
@given(
    st.tuples(*[st.floats(0, 4)] * 3),
    st.tuples(*[st.sampled_from([0.3, 1, 1.7, 2, 3, 5, 11, 40])] * 3),
    st.sampled_from(["ellipsoid", "box"]),
)
def test_masks_reach_all_sides_of_their_boxes(low: tuple[float, ...], sides: tuple[float, ...], paint: str) -> None:
    box = np.array([*low, *(np.array(low) + sides)])
    place = np.argwhere(volume_of(tuple(box.tolist()), paint, (45, 45, 45)))
    reached = np.concatenate([place.min(axis=0), place.max(axis=0) + 1])
    assert np.abs(reached - box).max() < 1
    assert (reached[:3] >= np.floor(box[:3])).all()
    assert (reached[3:] <= np.ceil(box[3:])).all()


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.floats(1, 11)] * 3), st.floats(2, 14), st.sampled_from([None, (1.0, 1.0, 1.0), (3.0, 0.6, 1.7)]))
def test_a_sphere_is_one_in_millimetres(
    tmp_path_factory: pytest.TempPathFactory,
    index: tuple[float, ...],
    diameter: float,
    target: tuple[float, float, float] | None,
) -> None:
    centre = d3.voxel_to_world(OBLIQUE, np.array([index]))[0]
    label = d3.ObjectLabel(0, center_ras_mm=tuple(centre.tolist()), diameter_mm=diameter)
    spec = d3.PrepareSpec(target_zyx_mm=target, crop=None, normalisation="none")
    path = tmp_path_factory.getbasetemp() / "ball.nii"
    if not path.exists():
        d3.write_nifti(np.ones(SHAPE, np.float32), path, affine=OBLIQUE)
    scan, source = d3.read_scan(path), d3.CaseSource("a", (path,), objects=(label,), paint="ellipsoid")
    annotations = read_annotations(source, scan, ("c",))
    assert annotations is not None
    grid = choose_grid(scan, spec, annotations.boxes)
    _, (layer,) = objects_on_grid(annotations, grid)
    found = layer > 0
    voxels = np.stack([*np.ndindex(*grid.shape)])
    distance = np.linalg.norm(d3.voxel_to_world(grid.affine, voxels) - centre, axis=1).reshape(found.shape)
    box = label.box_in(grid.affine, grid.affine)
    if (box[3:] - box[:3]).min() < 1.001:
        return  # thinner than a voxel
    clear = (np.abs(distance - diameter / 2) > 1e-3) & ~axes_of(box, grid.shape)
    np.testing.assert_array_equal(found[clear], (distance <= diameter / 2)[clear])


def test_the_truth_keeps_what_was_labelled(tmp_path: Path) -> None:
    affine = np.diag([2.0, 1, 4, 1])
    label = d3.ObjectLabel(1, center_ras_mm=(10, 7, 20), diameter_mm=6.0)
    spec = d3.PrepareSpec(target_zyx_mm=(2, 1, 1), crop=None, normalisation="none")
    case = prepared_case(tmp_path, affine, spec, objects=(label,), paint="ellipsoid")
    assert case.truth is not None
    assert case.truth["centers_ras_mm"] == [[10, 7, 20]]
    assert case.truth["diameters_mm"] == [6.0]
    np.testing.assert_allclose(case.truth["boxes"], [[4.75, 4.5, 4, 6.25, 10.5, 7]])
    # prepared: centre (11, 7.5, 11) in voxel edges, radii (1.5, 3, 3); the box is not that of the voxels
    assert case.boxes.tolist() == [[9.5, 4.5, 8, 12.5, 10.5, 14]]
    assert case.label_kinds == ("instances",)
    assert case.objects.layer.tolist() == [0]
    assert np.isnan(case.objects.radii_zyx).all()
    assert case.voxels.tolist() == [np.count_nonzero(case.read_label_patch("instances", (0, 0, 0), case.shape[1:]))]
    assert len(case.foreground) == case.voxels[0]
    assert set(case.foreground[:, 0].tolist()) == {1}


def test_overlapping_objects_keep_their_voxels(tmp_path: Path) -> None:
    labels = (
        d3.ObjectLabel(0, box_zyx=(1, 1, 1, 9, 9, 9)),
        d3.ObjectLabel(1, box_zyx=(4, 4, 4, 6, 6, 6), ignore=True),
        d3.ObjectLabel(1, box_zyx=(3, 3, 3, 5, 5, 5)),
        d3.ObjectLabel(0, box_zyx=(10, 10, 10, 12, 12, 14)),
    )
    case = prepared_case(tmp_path, np.diag([1.0, 1, 1, 1]), objects=labels, paint="box")
    assert case.objects.voxels.tolist() == [512, 8, 16, 8]  # those to ignore last
    assert case.objects.layer.tolist() == [0, 1, 0, 2]
    assert case.objects.boxes.tolist()[:2] == [[1, 1, 1, 9, 9, 9], [3, 3, 3, 5, 5, 5]]


@pytest.mark.parametrize("kind", ["box_ras_mm", "sphere"])
def test_an_object_that_reaches_out_of_the_scan_is_cut_off(tmp_path: Path, kind: str) -> None:
    given = {
        "box_ras_mm": d3.ObjectLabel(0, box_ras_mm=(1.5, 1.5, -4.5, 9.5, 9.5, 3.5)),
        "sphere": d3.ObjectLabel(0, center_ras_mm=(5.5, 5.5, -0.5), diameter_mm=8),
    }[kind]
    case = prepared_case(tmp_path, np.eye(4), objects=(given,), paint="ellipsoid")
    assert case.notes["objects_clipped"] == 1
    found = case.read_label_patch("instances", (0, 0, 0), case.shape[1:]) > 0
    centres = np.moveaxis(np.indices(found.shape), 0, -1) + 0.5
    np.testing.assert_array_equal(found, np.linalg.norm(centres - (0, 6, 6), axis=-1) <= 4)
    assert case.truth is not None
    assert case.truth["boxes"] == [[0, 2, 2, 4, 10, 10]]


def test_a_case_without_objects_has_an_empty_mask(tmp_path: Path) -> None:
    case = prepared_case(tmp_path, np.eye(4), objects=(), paint="ellipsoid")
    assert (case.label_kinds, len(case.objects)) == (("instances",), 0)
    assert not case.read_label_patch("instances", (0, 0, 0), case.shape[1:]).any()


def test_an_unlabelled_case_stays_one(tmp_path: Path) -> None:
    case = prepared_case(tmp_path, np.eye(4), paint="box")
    assert (case.label_kinds, case.truth) == ((), None)


@pytest.mark.parametrize("paint", ["ellipsoid", "box"])
@pytest.mark.parametrize("resampled", [False, True])
def test_boxes_stay_as_labelled(tmp_path: Path, paint: str, resampled: bool) -> None:
    """In the case, and in samples that are not turned and hold the whole object; others have those of the voxels."""
    boxes = [(1, 2, 3, 3, 12, 4), (5, 5, 5, 8, 10, 11), (9, 1.25, 8, 11.5, 2, 8.75)]
    labels = tuple(d3.ObjectLabel(0, box_zyx=box) for box in boxes)
    spec = d3.PrepareSpec(target_zyx_mm=(0.7, 0.9, 1.5) if resampled else None, crop=None, normalisation="none")
    case = prepared_case(tmp_path, np.eye(4), spec, objects=labels, paint=paint)
    scale = np.tile(np.array(case.shape[1:]) / SHAPE, 2)
    np.testing.assert_allclose(case.boxes, boxes * scale, rtol=1e-6)
    store, shape = d3.Store.open(tmp_path / "out"), case.shape[1:]
    for geometry in (None, d3.Geometry(p_rotation=0, p_scale=0)):  # the second mirrors
        sampler = d3.PatchSampler((40, 40, 40), geometry=geometry, object_fraction=1)
        for sample in d3.PatchDataset(store, sampler, n_per_epoch=6):
            index = (sample["boxes"][:, :3] + sample["boxes"][:, 3:]) / 2 - 0.5
            here = d3.voxel_to_world(np.linalg.inv(case.affine) @ sample["affine"], index.astype(np.float64)) + 0.5
            np.testing.assert_allclose(here[:, ::-1], (case.boxes[:, :3] + case.boxes[:, 3:]) / 2, atol=1e-4)
            sides = sample["boxes"][:, 3:] - sample["boxes"][:, :3]
            np.testing.assert_allclose(sides, case.boxes[:, 3:] - case.boxes[:, :3], atol=1e-4)
    small = d3.PatchSampler((4, 4, 4), object_fraction=1)
    cut = 0
    for sample in d3.PatchDataset(store, small, n_per_epoch=20):
        for k, box in enumerate(sample["boxes"]):
            place = np.argwhere(sample["instances"] == k + 1)
            if (box % 1).any() or not len(place):
                continue  # as labelled, or behind another
            cut += 1
            assert box.tolist() == [*place.min(axis=0), *(place.max(axis=0) + 1)]
    assert cut
    assert shape == case.shape[1:]


def test_samples_have_boxes_tight_around_painted_masks(tmp_path: Path) -> None:
    label = d3.ObjectLabel(0, center_ras_mm=(8, 7, 12), diameter_mm=7)
    spec = d3.PrepareSpec(target_zyx_mm=(1, 1, 1), crop=None)
    prepared_case(tmp_path, np.diag([1.0, 1, 2, 1]), spec, objects=(label,), paint="ellipsoid")
    geometry = d3.Geometry(p_rotation=1, p_scale=1)
    sampler = d3.PatchSampler((12, 12, 12), geometry=geometry, object_fraction=1)
    for sample in d3.PatchDataset(d3.Store.open(tmp_path / "out"), sampler, n_per_epoch=20):
        place = np.argwhere(sample["instances"] == 1)
        assert sample["boxes"].tolist() == [[*place.min(axis=0), *(place.max(axis=0) + 1)]]
        # the mask of the turned sphere is the sphere, but for the voxels at its surface
        index = np.moveaxis(np.indices(sample["instances"].shape), 0, -1).reshape(-1, 3)
        world = d3.voxel_to_world(sample["affine"], index)
        distance = np.linalg.norm(world - (8, 7, 12), axis=1).reshape(sample["instances"].shape)
        assert (sample["instances"][distance < 3.5 - 1.0] == 1).all()
        assert (sample["instances"][distance > 3.5 + 1.0] == 0).all()


def test_masks_are_not_painted() -> None:
    with pytest.raises(ValueError, match="paint is for objects without masks, but instances is given"):
        d3.CaseSource("a", (Path("a.nii"),), (Path("l.nii"),), paint="box")
