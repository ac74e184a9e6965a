"""What `detect_volume` refuses before the first tile, and says why."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from girih_detectors import RetinaUNet, detect_volume
from girih_detectors.inference import collect
from girih_detectors.testing import TinyPyramid
from girih_detectors.testing.subject import run_time_types_off


class Blind(nn.Module):
    """Finds nothing."""

    def __init__(self, *classes) -> None:
        super().__init__()
        self.classes = classes or ("a", "b")
        self.pyramid = nn.Identity()

    def forward(self, images, targets):
        raise NotImplementedError

    tensors = postprocess = forward

    def detect(self, images):
        return [{"boxes": torch.zeros(0, 6), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}] * len(images)


def test_models_that_do_not_belong_together_are_refused() -> None:
    image = np.zeros((1, 16, 16, 16), dtype=np.float32)
    with pytest.raises(ValueError, match=r"model 2 has the classes \('a',\), the first one \('a', 'b'\)"):
        detect_volume([Blind(), Blind("a")], image, patch_zyx=(16, 16, 16))
    with pytest.raises(ValueError, match="no detector"):
        detect_volume([], image, patch_zyx=(16, 16, 16))

    class Deaf(Blind):
        def detect(self, images):
            return []

    with pytest.raises(ValueError, match=r"\(0, 0, 0\).*returned 0 results for 1 images"):
        detect_volume(Deaf(), image, patch_zyx=(16, 16, 16))


def test_bad_input_is_refused() -> None:
    image = np.zeros((1, 16, 16, 16), dtype=np.float32)
    with pytest.raises(ValueError, match=r"image has shape \(16, 16, 16\)"):
        detect_volume(Blind(), image[0], patch_zyx=(16, 16, 16))
    with pytest.raises(ValueError, match=r"valid has shape \(1, 16, 16\)"):
        detect_volume(Blind(), image, patch_zyx=(16, 16, 16), valid=np.ones((1, 16, 16), dtype=bool))
    with pytest.raises(ValueError, match="batch_size is 0"):
        detect_volume(Blind(), image, patch_zyx=(16, 16, 16), batch_size=0)
    with pytest.raises(ValueError, match="pool is 0"):
        collect(Blind(), image, patch_zyx=(16, 16, 16), pool=0)
    with run_time_types_off():
        for patch in ((16, 0, 16), (16.0, 16.0, 16.0), (16, 16), 16, "abc"):
            with pytest.raises(
                ValueError, match=rf"patch_zyx is {re.escape(repr(patch))}, wanted a tuple of three int"
            ):
                detect_volume(Blind(), image, patch_zyx=patch)
        with pytest.raises(ValueError, match=r"batch_size is 1\.5, wanted an integer of at least 1"):
            detect_volume(Blind(), image, patch_zyx=(16, 16, 16), batch_size=1.5)
    absent = f"cuda:{torch.cuda.device_count()}"
    for device in (absent, "nowhere"):
        with pytest.raises(ValueError, match=f"device is '{device}', which torch cannot use here: "):
            detect_volume(Blind(), image, patch_zyx=(16, 16, 16), device=device)
    network = RetinaUNet(TinyPyramid(), classes=("a",), anchors_zyx=[[6, 6, 6]], levels=(1, 2), head_channels=16)
    with pytest.raises(ValueError, match="18 voxels along x, wanted a multiple of 4"):
        detect_volume(network, image, patch_zyx=(16, 16, 18))
