"""Voxel size, patch and stages against cases worked out by hand from nnU-Net's rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from girih_data3d.planning.spacing import first_patch, median_size, target_spacing
from girih_data3d.planning.topology import Topology, plan_topology, possible_patches


def same(values: tuple[float, float, float], count: int = 3) -> np.ndarray:
    return np.array([values] * count)


def test_isotropic_data_take_their_median_voxel_size() -> None:
    spacings = np.array([[1.0, 0.7, 0.7], [1.25, 0.8, 0.8], [2.5, 0.9, 0.9]])
    assert target_spacing(spacings, same((300, 512, 512))) == (1.25, 0.8, 0.8)


def test_a_coarse_short_axis_takes_its_tenth_percentile() -> None:
    spacings = np.array([[5.0, 0.8, 0.8], [5.0, 0.8, 0.8], [1.25, 0.8, 0.8]])
    assert target_spacing(spacings, same((100, 512, 512))) == (2.0, 0.8, 0.8)  # numpy: 1.25 + 0.2 * 3.75
    assert target_spacing(spacings, same((171, 512, 512))) == (5.0, 0.8, 0.8)  # 3 * 171 is not below 512
    assert target_spacing(spacings[:, [1, 2, 0]], same((512, 512, 100))) == (0.8, 0.8, 2.0)  # whichever axis it is
    assert target_spacing(same((2.4, 0.8, 0.8)), same((100, 512, 512)))[0] == 2.4  # three times is not above three


def test_a_coarse_axis_does_not_become_the_finest() -> None:
    spacings = np.array([[5.0, 0.8, 0.8]] * 6 + [[0.5, 0.8, 0.8]] * 2)
    assert target_spacing(spacings, same((100, 512, 512), 8)) == (0.80001, 0.8, 0.8)


def test_an_outlier_changes_nothing() -> None:
    spacings = np.concatenate([same((1.0, 0.7, 0.7), 9), same((40.0, 0.7, 0.7), 1)])
    assert target_spacing(spacings, same((300, 512, 512), 10)) == (1.0, 0.7, 0.7)


def test_the_first_patch_is_cut_to_the_median_scan() -> None:
    median = median_size(same((2.5, 0.8, 0.8)), same((100, 512, 480)), (2.5, 1.6, 0.8))
    assert median == pytest.approx((100, 256, 480))
    assert first_patch((2.5, 0.8, 0.8), (100, 512, 480)) == (100, 480, 480)  # square across the coarsest axis
    assert first_patch((1, 1, 1), (300, 350, 400)) == (300, 350, 350)
    assert first_patch((0.8, 0.8, 2.5), (512, 480, 100)) == (480, 480, 100)
    assert first_patch((2.0, 1, 1), (4000, 4000, 4000)) == (512, 1024, 1024)


def test_an_isotropic_patch() -> None:
    found = plan_topology((128, 128, 128), (1, 1, 1))
    assert found == Topology((128,) * 3, ((1,) * 3, *((2,) * 3,) * 5), ((3,) * 3,) * 6)
    assert found.strides[-1] == (32, 32, 32)
    assert found.channels == (32, 64, 128, 256, 320, 320)


def test_an_anisotropic_patch() -> None:
    # in plane twice, until it has 3.2 too (1.6 is half: not within a factor of two); all twice, z: 28, 14, 7; in plane
    # once more; then z is the finest, with 12.8 against 25.6, and too short
    found = plan_topology((28, 256, 256), (3.2, 0.8, 0.8))
    assert found.downsampling == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert found.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    assert found.patch_zyx == (28, 256, 256)
    assert found.levels == (2, 3, 4, 5)


def test_the_odd_patch_is_padded() -> None:
    found = plan_topology((20, 50, 50), (2.0, 0.8, 0.8))
    # 20, 50, 50 -> in plane: 20, 25, 25 -> all (1.6 against 2): 10, 13, 13 -> all: 5, 7, 7
    assert found.downsampling == ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    assert found.patch_zyx == (20, 56, 56)
    assert found.kernels == ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))


@pytest.mark.parametrize(
    ("side", "levels"),
    [(8, (1,)), (16, (1, 2)), (32, (1, 2, 3)), (64, (1, 2, 3, 4)), (128, (2, 3, 4, 5)), (256, (2, 3, 4, 5, 6))],
)
def test_levels_of_two_to_seven_stages(side: int, levels: tuple[int, ...]) -> None:
    found = plan_topology((side,) * 3, (1, 1, 1))
    assert len(found.kernels) == levels[-1] + 1
    assert found.levels == levels


SPACING = st.tuples(*[st.floats(0.3, 6)] * 3)
MEDIAN = st.tuples(*[st.integers(8, 400)] * 3)


@given(SPACING, MEDIAN)
def test_possible_patches_shrink_and_divide_by_their_strides(
    spacing: tuple[float, float, float], median: tuple[int, int, int]
) -> None:
    first = first_patch(spacing, median)
    before = None
    for found in possible_patches(first, spacing):
        stride = found.strides[-1]
        assert all(size % step == 0 and size > 0 for size, step in zip(found.patch_zyx, stride, strict=True))
        assert all(size // step >= 4 for size, step in zip(found.patch_zyx, stride, strict=True) if step > 1)
        assert len(found.downsampling) == len(found.kernels) == len(found.channels)
        voxels = int(np.prod(found.patch_zyx))
        assert before is None or voxels <= before
        before = voxels


def test_possible_patches_start_with_the_whole_and_keep_about_its_shape() -> None:
    found = possible_patches((300, 300, 300), (1, 1, 1))
    assert found[0] == plan_topology((300, 300, 300), (1, 1, 1))
    assert all(max(t.patch_zyx) <= 3 * min(t.patch_zyx) or max(t.patch_zyx) <= 32 for t in found)
    assert (128, 128, 128) in [t.patch_zyx for t in found]
    thin = possible_patches((3, 256, 256), (5, 1, 1))
    assert {t.patch_zyx[0] for t in thin} == {3}
    assert thin[-1].patch_zyx[1] == 8
