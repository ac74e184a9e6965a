"""Lungs, shapes and the blending operator on phantoms whose geometry is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from girih.samples.backgrounds import Background
from girih.samples.blend import GAP_MM, VISIBLE_HU, Look, draw_look, empty_scene, fits, insert
from girih.samples.compose import insert_decoys, insert_nodules
from girih.samples.lidc import Nodule, signed_distance
from girih.samples.lungs import box_around, lung_mask
from girih.samples.shapes import nodule_shape, plaque_shape, pleura_starts, vessel_shape, vessel_starts

SPACING_MM = 2.0
LUNG_HU, WALL_HU, VESSEL_HU = -850.0, 40.0, 20.0


def background(*, blur: float = 0.0, vessel: bool = False) -> Background:
    """A lung that fills a box, in a wall; a vessel of 2 x 2 voxels runs along x through the middle."""
    hu = np.full((40, 44, 48), WALL_HU, np.float32)
    lung = np.zeros(hu.shape, bool)
    lung[6:34, 6:38, 6:42] = True
    hu[lung] = LUNG_HU
    if vessel:
        hu[19:21, 21:23, 6:42] = VESSEL_HU
    depth = [np.minimum(np.arange(n) - 5.5, n - 6.5 - np.arange(n)) for n in hu.shape]
    depth_mm = SPACING_MM * np.minimum.reduce(np.meshgrid(*depth, indexing="ij"))
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = (-50, 20, 300)
    return Background(
        "phantom", SPACING_MM, hu, affine, depth_mm.astype(np.float32), lung, np.zeros(hu.shape, np.uint8), blur
    )


def ball(diameter_mm: int, *, texture: float = 5.0, margin: float = 5.0) -> Nodule:
    index = np.indices((41, 41, 41)) - 20
    mask = (index**2).sum(axis=0) < (diameter_mm / 2) ** 2
    return Nodule(
        1, "P1", (1, 2, 3), float(diameter_mm), texture, 3.0, margin, 4.0, signed_distance(mask, (1.0, 1.0, 1.0))
    )


CENTRE = np.array([20.0, 14.0, 20.0])


def test_opacity_is_the_formula_and_attenuation_is_only_raised() -> None:
    scene = empty_scene(background())
    scene.hu[20, 14, 20] = 500.0  # brighter than the object
    window, distance = nodule_shape(ball(12), CENTRE, Rotation.identity(), scene.background)
    look = Look(hu=0.0, soft_mm=2.0)
    before = scene.hu.copy()
    insert(scene, window, distance, look, label=3, rng=np.random.default_rng(0))
    opacity = np.clip(0.5 - distance / 4.0, 0, 1)
    raised = (scene.hu - before)[window]
    untouched = np.indices(distance.shape).sum(axis=0) < 0
    untouched[tuple(np.array([20, 14, 20]) - [side.start for side in window])] = True
    expected = opacity * -LUNG_HU
    assert np.abs(raised - expected)[~untouched].max() < 150  # the rest is the noise inside
    assert np.abs(raised - expected)[~untouched].mean() < 10
    assert scene.hu[20, 14, 20] == 500.0
    assert (raised >= 0).all()
    assert (scene.hu == before).sum() > 0.9 * before.size
    np.testing.assert_array_equal(scene.instances[window] == 3, opacity > 0.5)
    assert not scene.free[window][distance <= GAP_MM].any()


def test_thick_slices_blur_along_z_and_keep_the_total() -> None:
    sharp, thick = empty_scene(background()), empty_scene(background(blur=1.0))
    rises = []
    for scene in (sharp, thick):
        before = scene.hu.copy()
        window, distance = nodule_shape(ball(8), CENTRE, Rotation.identity(), scene.background)
        insert(scene, window, distance, Look(0.0, 1.0), label=1, rng=np.random.default_rng(0))
        rises.append(scene.hu - before)
    assert rises[1].sum() == pytest.approx(rises[0].sum(), rel=0.03)
    extents = [np.ptp(np.nonzero(rise > 60)[0]) for rise in rises]
    assert extents[1] > extents[0]
    np.testing.assert_array_equal(sharp.instances, thick.instances)


BALL = ball(12)


@settings(max_examples=15)
@given(
    st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(v * v for v in q) > 0.1),
    st.tuples(*[st.floats(-0.5, 0.5)] * 3),
)
def test_turn_and_shift_keep_volume_and_middle(turn: tuple[float, ...], shift: tuple[float, ...]) -> None:
    phantom = background()
    centre = CENTRE + shift
    window, distance = nodule_shape(BALL, centre, Rotation.from_quat(turn), phantom)
    core = distance < 0
    assert core.sum() * SPACING_MM**3 == pytest.approx(np.pi / 6 * 12**3, rel=0.2)  # of 113 voxels
    middle = np.argwhere(core).mean(axis=0) + [side.start for side in window]
    np.testing.assert_allclose(middle, centre, atol=0.4)


def test_looks_follow_the_ratings_and_edges_are_no_sharper_than_a_voxel() -> None:
    rng = np.random.default_rng(0)
    sharp_ball, glass_ball = ball(8), ball(8, texture=1.0, margin=1.0)
    solid = [draw_look(sharp_ball, SPACING_MM, rng) for _ in range(300)]
    glass = [draw_look(glass_ball, SPACING_MM, rng) for _ in range(300)]
    assert np.mean([look.hu for look in solid]) == pytest.approx(30, abs=10)
    assert np.mean([look.hu for look in glass]) == pytest.approx(-550, abs=10)
    assert solid[0].soft_mm == SPACING_MM / 2
    assert glass[0].soft_mm == 2.0


def test_objects_fit_only_in_free_lung_and_where_they_are_seen() -> None:
    scene = empty_scene(background())
    shape = nodule_shape(ball(10), CENTRE, Rotation.identity(), scene.background)
    assert fits(scene, *shape, Look(0.0, 1.0), in_air=1.0)
    assert not fits(scene, *shape, Look(LUNG_HU + VISIBLE_HU - 1, 1.0), in_air=0.0)
    in_wall = nodule_shape(ball(10), np.array([20.0, 6.0, 20.0]), Rotation.identity(), scene.background)
    assert not fits(scene, *in_wall, Look(0.0, 1.0), in_air=0.0)
    insert(scene, *shape, Look(0.0, 1.0), label=1, rng=np.random.default_rng(0))
    assert not fits(scene, *shape, Look(500.0, 1.0), in_air=0.0)


def test_a_nodule_beside_a_vessel_fits_and_one_around_it_does_not() -> None:
    scene = empty_scene(background(vessel=True))
    look = Look(200.0, 1.0)
    for away_voxels, expected in ((3.5, True), (0.0, False)):
        centre = np.array([19.5, 21.5 - away_voxels, 24.0])
        shape = nodule_shape(ball(7), centre, Rotation.identity(), scene.background)
        assert fits(scene, *shape, look, in_air=0.7) is expected
        assert fits(scene, *shape, look, in_air=0.3)


def test_nodules_and_decoys_of_a_scene() -> None:
    scene = empty_scene(background(vessel=True))
    pool = [ball(diameter) for diameter in (6, 8, 10, 12, 16)]
    placed = insert_nodules(scene, pool, 4, np.random.default_rng(0))
    labels = scene.instances.copy()
    decoys = insert_decoys(scene, pool, 4, np.random.default_rng(1))
    assert [row["instance"] for _, row in placed] == [1, 2, 3, 4]
    for _, row in placed:
        index = np.linalg.solve(scene.background.affine, [*row["position_ras_mm"], 1.0])[2::-1]
        middle = np.argwhere(labels == row["instance"]).mean(axis=0)
        np.testing.assert_allclose(middle, index, atol=0.6)
    assert {row["kind"] for row in decoys} == {"vessel", "plaque"}
    np.testing.assert_array_equal(scene.instances, labels)  # decoys are not labelled


def test_too_many_nodules_are_an_error() -> None:
    with pytest.raises(ValueError, match="phantom: found places for 1 nodules, wanted 2"):
        insert_nodules(empty_scene(background()), [ball(10)], 2, np.random.default_rng(0))


def test_vessel_decoy_follows_the_vessel() -> None:
    phantom = background(vessel=True)
    starts = vessel_starts(phantom)
    assert len(starts) > 0
    shape = vessel_shape(starts[len(starts) // 2], phantom, np.random.default_rng(0))
    assert shape is not None
    window, distance = shape
    core = np.argwhere(distance < 0) + [side.start for side in window]
    assert np.abs(core[:, 0] - 19.5).max() < 4
    assert np.abs(core[:, 1] - 21.5).max() < 4
    sides = np.ptp(core, axis=0) + 1
    assert sides[2] >= 2 * max(sides[0], sides[1])


def test_no_vessel_decoy_without_a_direction() -> None:
    assert vessel_shape(np.array([20, 20, 20]), background(), np.random.default_rng(0)) is None
    assert len(vessel_starts(background())) == 0


def test_plaque_lies_flat_on_the_pleura() -> None:
    phantom = background()
    starts = pleura_starts(phantom)
    assert (phantom.depth_mm[tuple(starts.T)] <= SPACING_MM).all()
    window, distance = plaque_shape(np.array([20, 6, 20]), phantom, np.random.default_rng(0))
    inside = (distance < 0) & (phantom.depth_mm[window] > 0)
    sides = np.ptp(np.argwhere(inside), axis=0) + 1
    assert sides[1] <= 3  # at most 4.5 mm high
    assert min(sides[0], sides[2]) >= 5


def test_lungs_of_a_phantom_body() -> None:
    z, y, x = np.indices((60, 100, 120)) * 3.0
    hu = np.full(z.shape, -1000.0, np.float32)
    hu[((y - 150) / 130) ** 2 + ((x - 180) / 165) ** 2 < 1] = 40
    left = ((z - 90) / 75) ** 2 + ((y - 150) / 80) ** 2 + ((x - 100) / 55) ** 2 < 1
    right = ((z - 90) / 75) ** 2 + ((y - 150) / 80) ** 2 + ((x - 260) / 55) ** 2 < 1
    hu[left | right] = -850
    hu[((y - 150) ** 2 + (x - 180) ** 2 < 9**2)] = -1000  # the trachea
    vessel = (np.abs(y - 150) < 2) & (np.abs(x - 100) < 40) & (np.abs(z - 90) < 2)
    hu[vessel] = 40
    hu[:, 97:, :] = 300  # the table
    found = lung_mask(hu, 3.0)
    truth = left | right
    overlap = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert overlap > 0.96
    assert found[vessel].all()
    assert not found[30, 50, 60]
    box = box_around(found, 6.0, 3.0)
    assert all(side.stop - side.start >= n for side, n in zip(box, np.ptp(np.argwhere(found), axis=0) + 5, strict=True))


def test_a_volume_without_lungs_is_an_error() -> None:
    with pytest.raises(ValueError, match="no lungs"):
        lung_mask(np.full((10, 20, 20), 40.0, np.float32), 3.0)
