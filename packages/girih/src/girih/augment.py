"""Intensity augmentation by batchgeneratorsv2: nnDetection's "base_more" set, in its order and with its probabilities.

Geometry is not here: the patch sampler draws rotation, scale and mirror before it reads (Baumgartner et al. 2021).
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

Sample = dict[str, Any]


def make_augmentation(name: str) -> Callable[[Sample], Sample] | None:
    """Return the transform called `name`: "base_more", or "none" for None.

    Raises:
        ValueError: batchgeneratorsv2, the extra `augment`, is not installed.
    """
    if name == "none":
        return None
    if importlib.util.find_spec("batchgeneratorsv2") is None:
        raise ValueError(
            f"augmentation {name!r} needs batchgeneratorsv2: pip install 'girih[augment]', or train without any"
        )
    return base_more


def base_more(sample: Sample) -> Sample:
    """Return the sample with a changed image (C, Z, Y, X); the draw depends on sample["seed"] alone."""
    image = torch.from_numpy(np.array(sample["image"], dtype=np.float32))  # a copy: the transforms work in place
    with _seeded(int(sample["seed"])):
        for transform in _transforms():
            image = transform(image=image)["image"]
    return {**sample, "image": image.numpy()}


@cache
def _transforms() -> tuple[Any, ...]:
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    # BGContrast draws from below and above 1 with equal probability. Gamma and blur act channel by channel.
    gamma = {"gamma": BGContrast((0.7, 1.5)), "synchronize_channels": False, "p_per_channel": 1, "p_retain_stats": 1}
    return (
        RandomTransform(GaussianNoiseTransform((0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1),
        # benchmark=True would choose its algorithm by the clock, and with it the last bits of the result.
        RandomTransform(
            GaussianBlurTransform((0.5, 1.0), p_per_channel=0.5, synchronize_axes=True, benchmark=False), 0.2
        ),
        RandomTransform(MultiplicativeBrightnessTransform((0.75, 1.25), synchronize_channels=False), 0.15),
        RandomTransform(
            ContrastTransform(BGContrast((0.75, 1.25)), preserve_range=True, synchronize_channels=False), 0.15
        ),
        RandomTransform(GammaTransform(p_invert_image=1, **gamma), 0.1),
        RandomTransform(GammaTransform(p_invert_image=0, **gamma), 0.3),
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the two global generators that batchgeneratorsv2 draws from, and put them back."""
    before = np.random.get_state()  # noqa: NPY002 - the library draws from the legacy generator
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002
