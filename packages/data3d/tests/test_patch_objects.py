"""Objects in patches: masks that overlap, boxes and spheres without masks, and what is left out."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import girih_data3d as d3
from girih_data3d.objects import Objects
from girih_data3d.patch import Cut
from girih_data3d.patch_objects import add_boxes, add_instances, moved_boxes, visible_shares

SHAPE = (40, 44, 48)
CUBOIDS = [(4, 5, 6, 10, 12, 9), (20, 20, 20, 33, 30, 41), (24, 22, 25, 28, 27, 29), (35, 2, 40, 39, 6, 47)]
"""The third lies inside the second; the fourth is to be ignored."""
TURNED = d3.Geometry(p_rotation=1, p_scale=1)


def objects(boxes: list[Any], *, spheres: dict[int, Any] | None = None, ignore: tuple[int, ...] = ()) -> Objects:
    records: list[dict[str, Any]] = [
        {"id": k, "class": k, "ignore": k in ignore, "box": list(box)} for k, box in enumerate(boxes)
    ]
    for k, (centre, radii) in (spheres or {}).items():
        records[k] |= {"centre": list(centre), "radii": list(radii)}
    return Objects.from_record(records)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, d3.Store]:
    """One scan, its objects labelled as masks in two files, as boxes, and as spheres; and labelled as free of any."""
    folder = tmp_path_factory.mktemp("stores")
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    d3.write_nifti(image, folder / "a.nii", affine=np.eye(4))
    labels = np.zeros((2, *SHAPE), np.uint8)
    for k, (z0, y0, x0, z1, y1, x1) in enumerate(CUBOIDS):
        labels[int(k == 2), z0:z1, y0:y1, x0:x1] = k + 1
    files = []
    for k, array in enumerate(labels):
        files.append(folder / f"l{k}.nii")
        d3.write_nifti(array, files[-1], affine=np.eye(4))
    images = (folder / "a.nii",)
    boxes = tuple(d3.ObjectLabel(0, ignore=k == 3, box_zyx=box) for k, box in enumerate(CUBOIDS))
    spheres = tuple(
        d3.ObjectLabel(0, ignore=k == 3, center_ras_mm=centre, diameter_mm=d)
        for k, (centre, d) in enumerate([((7, 8, 6), 6.0), ((30, 25, 26), 12.0), ((24, 40, 1), 7.5), ((44, 4, 37), 5)])
    )
    sources = {
        "masks": d3.CaseSource("a", images, tuple(files), ignore=(4,)),
        "boxes": d3.CaseSource("a", images, objects=boxes),
        "spheres": d3.CaseSource("a", images, objects=spheres),
        "none": d3.CaseSource("a", images, objects=()),
    }
    spec = d3.PrepareSpec(target_zyx_mm=None, crop=None)
    made = {}
    for name, source in sources.items():
        assert d3.prepare_many(d3.Dataset(name, ("c",), (source,)), folder / name, spec, workers=0).done == ["a"]
        made[name] = d3.Store.open(folder / name)
    return made


def dataset(store: Any, patch: tuple[int, int, int] = (24, 24, 24), **kwargs: Any) -> d3.PatchDataset:
    case_ids = kwargs.pop("case_ids", None)
    return d3.PatchDataset(store, d3.PatchSampler(patch, **kwargs), case_ids=case_ids, n_per_epoch=30)


matrices = st.builds(
    lambda seed, turned: (d3.Geometry(p_rotation=turned, p_scale=turned)).draw(np.random.default_rng(seed), (1, 2, 3)),
    st.integers(0, 10**9),
    st.integers(0, 1),
)
points = st.tuples(*[st.floats(-20, 60)] * 3).map(np.array)


@settings(max_examples=60, deadline=None)
@given(matrices, points, points, st.tuples(*[st.floats(0.1, 9)] * 3).map(np.array))
def test_moved_boxes_are_hulls(matrix: np.ndarray, centre: np.ndarray, middle: np.ndarray, radii: np.ndarray) -> None:
    box = np.concatenate([middle - radii, middle + radii]).astype(np.float32)
    size, surface = (20, 30, 10), np.random.default_rng(0).normal(size=(5000, 3))
    surface /= np.linalg.norm(surface, axis=1, keepdims=True)

    def moved(places: np.ndarray) -> np.ndarray:
        inside = (places - centre) @ np.linalg.inv(matrix).T + np.array(size) / 2
        return np.concatenate([inside.min(axis=0), inside.max(axis=0)])

    corners = np.array(list(itertools.product(*np.float64(box).reshape(2, 3).T)))
    both = moved_boxes(objects([box, box], spheres={1: (middle, radii)}), matrix, centre, size)
    np.testing.assert_allclose(both[0], moved(corners), atol=1e-6)
    np.testing.assert_allclose(both[1], moved(middle + surface * radii), atol=0.02 * radii.max() * 2)
    assert (both[1, :3] >= both[0, :3]).all()
    assert (both[1, 3:] <= both[0, 3:]).all()


def test_sphere_cut_by_the_border_of_the_scan() -> None:
    cut = objects([(0, 0, 0, 2, 6, 6)], spheres={0: ((-1, 3, 3), (3, 3, 3))})
    moved = moved_boxes(cut, np.diag([1.0, 1, -1]), np.array([4.0, 4, 4]), (8, 8, 8))
    assert moved.tolist() == [[0, 0, 2, 2, 6, 8]]


def sample_of(shape: tuple[int, int, int]) -> dict[str, Any]:
    return {"valid": np.ones(shape, bool)}


def test_boxes_left_out_are_not_valid() -> None:
    boxes = [
        (1, 1, 1, 3, 3, 3),  # inside
        (-6, 4, 4, 2, 6, 6),  # a quarter of it
        (7.5, 7, 0, 20, 9, 1.5),  # half a voxel of it along z
        (5, 5, 5, 5.25, 5.25, 5.25),  # thin, but whole
        (30, 0, 0, 33, 3, 3),  # elsewhere
        (2, 6.5, 6, 3.5, 7, 8),  # to be ignored
    ]
    placed = objects(boxes, ignore=(5,))
    for min_visible, kept in ((0.0, [0, 1, 3]), (0.25, [0, 1, 3]), (0.3, [0, 3]), (1.0, [0, 3])):
        sample = sample_of((8, 10, 12))
        add_boxes(sample, placed, placed.boxes.astype(np.float64), min_visible)
        assert sample["labels"].tolist() == kept
        limits = np.array([8, 10, 12] * 2)
        assert sample["boxes"].tolist() == [np.clip(boxes[k], 0, limits).tolist() for k in kept]
        wanted = np.ones((8, 10, 12), bool)
        wanted[7:8, 7:9, 0:2] = False
        wanted[2:4, 6:7, 6:8] = False
        if 1 not in kept:
            wanted[0:2, 4:6, 4:6] = False
        np.testing.assert_array_equal(sample["valid"], wanted)


def test_masks_left_out_hide_nothing() -> None:
    records = [
        {"id": k, "class": k, "ignore": k == 2, "box": box, "voxels": voxels, "layer": layer}
        for k, (box, voxels, layer) in enumerate(
            [([0, 0, 0, 4, 4, 4], 64, 0), ([1, 1, 1, 2, 2, 9], 8, 1), ([2, 2, 2, 5, 5, 5], 27, 2)]
        )
    ]
    placed = Objects.from_record(records)
    layers = np.zeros((3, 6, 6, 6), np.int32)
    layers[0, :4, :4, :4] = 1
    layers[1, 1, 1, 1:6] = 2  # 5 of 8 voxels are in the patch
    layers[2, 2:5, 2:5, 2:5] = 3  # to be ignored
    for enough, kept in ((True, [0, 1]), (False, [0])):
        sample = sample_of((6, 6, 6))
        add_instances(
            sample,
            placed,
            placed.boxes.astype(np.float64),
            lambda window: [layer[window] for layer in layers],
            np.array([True, enough, True]),
            turned=False,
        )
        assert sample["labels"].tolist() == kept
        assert sample["boxes"].tolist() == [[0, 0, 0, 4, 4, 4], [1, 1, 1, 2, 2, 6]][: len(kept)]
        shown = np.where((layers[1] > 0) & (1 in kept), 2, layers[0])
        np.testing.assert_array_equal(sample["instances"], shown)
        others = (layers[2] > 0) | ((layers[1] > 0) & (1 not in kept))
        np.testing.assert_array_equal(sample["valid"], ~others | (shown > 0))


@pytest.mark.parametrize("geometry", [None, TURNED, d3.Geometry(p_rotation=0, p_scale=1)])
def test_visible_share_is_that_of_the_case_s_own_voxels(
    stores: dict[str, d3.Store], geometry: d3.Geometry | None
) -> None:
    case, patch = stores["masks"]["a"], (18, 20, 16)
    layers = case.read_instance_layers((0, 0, 0), SHAPE)
    masks = [np.argwhere(layers[case.objects.layer[row]] == row + 1) for row in range(3)]
    samples = dataset(stores["masks"], patch, geometry=geometry, object_fraction=0.5, min_visible=0.6)
    lowest, cut_objects, left_out = dataset(stores["masks"], patch, geometry=geometry, object_fraction=0.5), 0, 0
    for g in range(30):
        at = [d3.world_to_voxel(samples[g]["affine"], d3.voxel_to_world(case.affine, m.astype(float))) for m in masks]
        wanted = np.array([((p >= -0.5) & (p < np.array(patch) - 0.5)).all(axis=1).mean() for p in at])
        place = samples.places.place(g, lambda row: np.zeros((0, 4), np.uint16))
        moved = moved_boxes(case.objects, place.matrix, place.centre, patch)
        cut = Cut(place.matrix, place.centre, patch)
        shares = visible_shares(case.objects, moved, cut, case.read_instance_layers)[:3]
        np.testing.assert_allclose(shares, wanted, rtol=0, atol=1e-12)
        assert len(samples[g]["boxes"]) == np.count_nonzero(wanted >= 0.6)
        cut_objects += np.count_nonzero((wanted > 0) & (wanted < 1))
        left_out += len(lowest[g]["boxes"]) > len(samples[g]["boxes"])
    assert min(cut_objects, left_out) > 3


def test_whole_objects_are_visible_however_they_are_turned(stores: dict[str, d3.Store]) -> None:
    def read(start: Any, size: Any) -> Any:
        raise AssertionError("a whole object needs no reading")

    case, patch = stores["masks"]["a"], (72, 72, 72)
    for sample in dataset(stores["masks"], patch, geometry=TURNED, object_fraction=1, min_visible=1):
        matrix = (np.linalg.inv(case.affine) @ sample["affine"])[:3, :3][::-1, ::-1]
        middle = d3.world_to_voxel(case.affine, d3.voxel_to_world(sample["affine"], np.array([[35.5] * 3])))[0] + 0.5
        moved = moved_boxes(case.objects, matrix, middle, patch)
        inside = ((moved >= 0) & (moved <= 72)).all(axis=1)[:3]
        assert len(sample["boxes"]) >= np.count_nonzero(inside) > 0
        shares = visible_shares(case.objects, moved, Cut(matrix, middle, patch), case.read_instance_layers)[:3]
        assert (shares[inside] == 1).all()
        if inside.all():
            visible_shares(case.objects, moved, Cut(matrix, middle, patch), read)


@pytest.mark.parametrize("geometry", [None, d3.Geometry(p_rotation=0, p_scale=0)])
@pytest.mark.parametrize("min_visible", [0, 0.5])
def test_cuboids_are_the_same_as_masks_and_as_boxes(
    stores: dict[str, d3.Store], geometry: d3.Geometry | None, min_visible: float
) -> None:
    masks, boxes = (
        dataset(stores[name], geometry=geometry, object_fraction=0.3, min_visible=min_visible)
        for name in ("masks", "boxes")
    )
    found = 0
    for a, b in zip(masks, boxes, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        order = [np.lexsort(sample["boxes"].T) for sample in (a, b)]
        np.testing.assert_array_equal(a["boxes"][order[0]], b["boxes"][order[1]])
        assert "instances" in a
        assert "instances" not in b
        assert (a["valid"] >= b["valid"]).all()  # a box left out inside a kept one is not valid, its voxels are
        found += len(a["boxes"])
    assert found > 30


def test_whole_object_is_in_its_patch(stores: dict[str, d3.Store]) -> None:
    for name in ("boxes", "spheres"):
        case = stores[name]["a"]
        for sample in dataset(stores[name], object_fraction=1, geometry=TURNED, patch=(60, 60, 60)):
            assert len(sample["boxes"])
            matrix = (np.linalg.inv(case.affine) @ sample["affine"])[:3, :3][::-1, ::-1]
            # the middle of some object's box, which lies inside as a whole, is where the patch's affine has it
            at = (sample["boxes"][:, :3] + sample["boxes"][:, 3:]) / 2 - 0.5
            world = d3.voxel_to_world(sample["affine"], at)
            middles = (case.boxes[:, :3] + case.boxes[:, 3:]) / 2 - 0.5
            apart = np.linalg.norm(d3.world_to_voxel(case.affine, world)[:, None] - middles, axis=2)
            assert apart.min() < 1e-4
            row = int(apart.argmin()) // len(middles)
            if name == "spheres":  # a sphere stays one, only its size follows the scale
                side = sample["boxes"][row, 3:] - sample["boxes"][row, :3]
                scale = abs(np.linalg.det(matrix)) ** (1 / 3)
                diameters = 2 * case.objects.radii_zyx[:, 0] / scale
                assert np.abs(side[:, None] - diameters).min() < 1e-4
                assert np.ptp(side) < 1e-4


@pytest.mark.parametrize("name", ["boxes", "spheres"])
def test_samples_without_masks_have_the_agreed_form(stores: dict[str, d3.Store], name: str) -> None:
    patch, ignored = (36, 40, 44), 0
    for geometry in (None, TURNED):
        for sample in dataset(stores[name], patch, geometry=geometry, object_fraction=0.2):
            assert "instances" not in sample
            assert (sample["boxes"].dtype, sample["labels"].dtype) == (np.float32, np.int64)
            assert len(sample["boxes"]) == len(sample["labels"]) <= 3
            assert ((sample["boxes"][:, :3] >= 0) & (sample["boxes"][:, 3:] <= patch)).all()
            assert (sample["boxes"][:, 3:] - sample["boxes"][:, :3] >= 1 - 1e-5).all()
            case = stores[name]["a"]  # the middle of the object to ignore is not valid wherever it is seen
            middle = (case.objects.boxes[3:, :3] + case.objects.boxes[3:, 3:]) / 2 - 0.5
            at = np.rint(d3.world_to_voxel(sample["affine"], d3.voxel_to_world(case.affine, middle)))[0].astype(int)
            if ((at >= 0) & (at < patch)).all():
                assert not sample["valid"][tuple(at)]
                ignored += 1
    assert ignored > 3


def test_overlapping_objects_are_two_rows(stores: dict[str, d3.Store]) -> None:
    (sample, *_) = dataset(stores["masks"], patch=SHAPE, object_fraction=1)
    assert sample["boxes"].tolist() == [list(map(float, box)) for box in CUBOIDS[:3]]
    case = stores["masks"]["a"]
    low, high = case.read_instance_layers((0, 0, 0), SHAPE)
    assert sorted(np.unique(high).tolist()) == [0, 3]
    np.testing.assert_array_equal(sample["instances"], np.where(high > 0, 3, np.where(low == 4, 0, low)))
    np.testing.assert_array_equal(sample["valid"], low != 4)


def test_instances_are_read_where_objects_lie_only(stores: dict[str, d3.Store], monkeypatch: Any) -> None:
    reads: list[int] = []
    inner = d3.Case.read_instance_layers

    def read(self: d3.Case, start: Any, size: Any) -> Any:
        reads.append(int(np.prod(size)))
        return inner(self, start, size)

    monkeypatch.setattr(d3.Case, "read_instance_layers", read)
    samples = dataset(stores["masks"], patch=(12, 12, 12), object_fraction=0)
    for g in range(60):
        reads.clear()
        sample = samples[g]
        voxels = np.argwhere(sample["instances"] > 0)
        if len(voxels) == 0:
            continue
        assert reads[0] <= 12**3
    empty = sum(not len(samples[g]["boxes"]) and samples[g]["valid"].all() for g in range(60))
    reads.clear()
    for g in range(60):
        samples[g]
    assert len(reads) <= 60 - empty


def test_several_datasets_in_one(stores: dict[str, d3.Store]) -> None:
    both = (stores["masks"], stores["boxes"], stores["none"])
    sampler = {"dataset_weights": {"masks": 1, "boxes": 2, "none": 3}, "object_fraction": 0.5}
    samples = dataset(both, **sampler)
    names = [samples[g]["dataset"] for g in range(300)]
    assert {name: names.count(name) > 20 for name in set(names)} == {"masks": True, "boxes": True, "none": True}
    assert all(("instances" in samples[g]) == (names[g] == "masks") for g in range(30))
    assert all(names[g] != "none" for g in range(1, 300, 2))  # object items
    assert all(samples[g]["case_id"] == "a" for g in range(30))
    one = dataset(both, case_ids={"masks": [], "none": ()}, object_fraction=0)
    assert {sample["dataset"] for sample in one} == {"boxes"}
    turns = [dataset(both, object_fraction=0)[g]["dataset"] for g in range(30)]
    assert all(set(turns[at : at + 3]) == {"masks", "boxes", "none"} for at in range(0, 30, 3))


def test_refusals(stores: dict[str, d3.Store]) -> None:
    one, two = stores["masks"], stores["boxes"]
    for store, case_ids, error, message in (
        ((one, one), None, ValueError, "every name once"),
        ((), None, ValueError, "at least one"),
        ((one, two), ["a"], ValueError, "case_ids is a list, but there are 2 datasets"),
        ((one, two), {"x": ["a"]}, KeyError, "case_ids names dataset 'x'"),
        ((one, two), {"masks": ["b"]}, KeyError, "no case 'b' in dataset 'masks'"),
        (one, {"masks": []}, ValueError, "no cases"),
    ):
        with pytest.raises(error, match=message):
            dataset(store, case_ids=case_ids)


def test_items_around_tissues(prepared: d3.Store) -> None:
    patch = (8, 9, 10)
    samples = dataset(prepared, patch, around="semantic", object_fraction=1)
    for sample in samples:
        assert sample["case_id"] != "free"
        z, y, x = (n // 2 for n in patch)
        start = sample["start"]
        limits = np.array(prepared[sample["case_id"]].shape[1:]) - patch
        if (start > 0).all() and (start < limits).all():
            assert sample["semantic"][z, y, x] > 0
