"""Normalisation: by hand, and the cases that have no scale."""

import numpy as np
import pytest

import girih_data3d as d3

VOLUME = np.array([0, 2, 4, 6], np.float32).reshape(1, 1, 2, 2)


def test_zscore_by_hand() -> None:
    out, params = d3.normalize(VOLUME, "zscore")
    np.testing.assert_allclose(out.ravel(), np.array([-3, -1, 1, 3]) / np.sqrt(5), rtol=1e-6)
    assert params == {"scheme": "zscore", "clip": None, "mean": None, "std": None}
    assert VOLUME.ravel().tolist() == [0, 2, 4, 6]


def test_zscore_after_clip() -> None:
    out, params = d3.normalize(VOLUME, "zscore", clip=(2, 4))
    np.testing.assert_allclose(out.ravel(), [-1, -1, 1, 1])
    assert params["clip"] == [2.0, 4.0]


def test_mask_leaves_zero_outside() -> None:
    out, _ = d3.normalize(VOLUME, "zscore_mask")  # inside: 2, 4, 6
    np.testing.assert_allclose(out.ravel(), np.array([0, -2, 0, 2]) / np.sqrt(8 / 3), rtol=1e-6)
    out, _ = d3.normalize(VOLUME, "zscore_mask", mask=VOLUME[0] < 3)  # inside: 0, 2
    assert out.ravel().tolist() == [-1, 1, 0, 0]
    out, _ = d3.normalize(VOLUME, "zscore_mask", mask=VOLUME[0] > 9)
    assert out.ravel().tolist() == [0, 0, 0, 0]


def test_ct_uses_the_given_numbers_per_channel() -> None:
    both = np.concatenate([VOLUME, VOLUME * 10])
    out, params = d3.normalize(both, "ct", clip=(0, 30), mean=(1, 10), std=(2, 5))
    np.testing.assert_allclose(out[0].ravel(), [-0.5, 0.5, 1.5, 2.5])
    np.testing.assert_allclose(out[1].ravel(), [-2, 2, 4, 4])
    assert params == {"scheme": "ct", "clip": [0, 30], "mean": [1, 10], "std": [2, 5]}


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -1024.0])
def test_constant_channel_becomes_zero(value: float) -> None:
    for scheme in ("zscore", "zscore_mask"):
        out, _ = d3.normalize(np.full((1, 3, 5, 7), value, np.float32), scheme)
        assert (out == 0).all()


def test_none_copies() -> None:
    out, _ = d3.normalize(VOLUME, "none")
    np.testing.assert_array_equal(out, VOLUME)
    assert not np.shares_memory(out, VOLUME)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scheme": "ct", "clip": (0, 1)}, "needs clip, mean and std"),
        ({"scheme": "ct", "clip": (0, 1), "mean": (1,), "std": (0,)}, "std above 0"),
        ({"scheme": "ct", "clip": (0, 1), "mean": (1, 2), "std": (1, 2)}, "2 values, the volume has 1 channels"),
        ({"scheme": "zscore", "mean": (1,)}, "takes them from each case"),
        ({"scheme": "zscore", "clip": (3, 1)}, "lowest first"),
        ({"scheme": "zscore", "mask": np.ones((1, 2, 2), bool)}, "does not use it"),
        ({"scheme": "zscore_mask", "mask": np.ones((2, 2, 2), bool)}, r"\(2, 2, 2\), the volume \(1, 2, 2\)"),
    ],
)
def test_parameters_that_do_not_belong_together(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        d3.normalize(VOLUME, **kwargs)


def test_unknown_scheme() -> None:
    with pytest.raises((ValueError, TypeError), match="minmax"):
        d3.normalize(VOLUME, "minmax")
