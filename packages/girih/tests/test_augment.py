import numpy as np
import pytest
import torch

from girih.augment import base_more, make_augmentation


def sample(seed: int) -> dict:
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype(np.float32)
    return {"image": image, "seed": seed, "boxes": np.zeros((0, 6), np.float32)}


def test_the_draw_depends_on_the_seed_alone() -> None:
    images = {}
    for seed in (*range(12), *range(12)):
        torch.rand(3)
        image = base_more(sample(seed))["image"]
        assert np.array_equal(images.setdefault(seed, image), image)
    assert len({image.tobytes() for image in images.values()}) > 4  # most draws change something, each differently


def test_global_generators_and_the_input_are_left_as_they_were() -> None:
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    expected = np.random.random(), torch.rand(1)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    given = sample(5)
    before = given["image"].copy()
    for seed in range(8):
        base_more({**given, "seed": seed})
    assert np.array_equal(given["image"], before)
    assert (np.random.random(), torch.rand(1)) == expected  # noqa: NPY002


def test_none_means_none_and_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_augmentation("none") is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'girih\[augment\]'"):
        make_augmentation("base_more")
