"""Retina U-Net on the backbones: exact sizes of the published networks, and every shape of pyramid trains."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from girih_backbones import UFPN, FeaturePyramid, make_encoder, preset
from girih_detectors import FocalL1, HnmGiou, RetinaUNet

PRINCIPAL_SIZES = [[float(z), float(y), float(x)] for z in (4, 8, 16) for y in (4, 8, 16) for x in (4, 8, 16)]
CUBIC = [[1, 1, 1], *[[2, 2, 2]] * 5]
FLAT = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def full_size(encoder, *, first_level, levels, stages=6, **settings) -> RetinaUNet:
    """At the published widths, without memory, for one channel, one class and 27 anchors."""
    description = preset(encoder)
    description["kwargs"] = {
        key: value[:stages] if isinstance(value, list) else value for key, value in description["kwargs"].items()
    }
    with torch.device("meta"):
        encoder = make_encoder(description, 1)
        neck = UFPN(encoder.channels, encoder.strides, first_level=first_level)
        pyramid = FeaturePyramid(encoder, neck)
        return RetinaUNet(pyramid, classes=("a",), anchors_zyx=PRINCIPAL_SIZES, levels=levels, **settings)


def test_v001_with_six_stages() -> None:
    v001 = {"loss": HnmGiou(), "activation": "relu"}
    detector = full_size("retina_unet_v001", first_level=2, levels=(2, 3, 4, 5), **v001)
    parts = {
        "encoder": parameters(detector.pyramid.encoder),
        "decoder": parameters(detector.pyramid.neck),
        "classifier": parameters(detector.class_head),
        "regressor": parameters(detector.box_head),
        "segmenter": parameters(detector.segmentation_head),
    }
    assert parts == {
        "encoder": 14_022_880,
        "decoder": 2_520_736,
        "classifier": 978_587,
        "regressor": 1_445_286,
        "segmenter": 66,
    }
    assert parameters(detector) == 18_967_555
    assert not any(isinstance(module, nn.LeakyReLU) for module in detector.modules())
    assert detector.pyramid.channels == (32, 64, 128, 128, 128, 128)


def test_v001_with_five_stages() -> None:
    detector = full_size("retina_unet_v001", stages=5, first_level=1, levels=(1, 2, 3, 4))
    assert parameters(detector) == 13_356_771
    assert detector.pyramid.channels == (64, 128, 128, 128, 128)


def test_v002_is_as_large_with_leaky_relu() -> None:
    detector = full_size("retina_unet_v002", first_level=2, levels=(2, 3, 4, 5))
    assert parameters(detector) == 18_967_555
    assert not any(isinstance(module, nn.ReLU) for module in detector.modules())


def test_resenc_l() -> None:
    detector = full_size("resenc_l", first_level=2, levels=(2, 3, 4, 5))
    assert parameters(detector) == 95_241_251
    tower = detector.class_head.tower
    assert [m.num_groups for m in tower if isinstance(m, nn.GroupNorm)] == [8, 8]


def test_output_of_the_published_patch() -> None:
    detector = full_size("retina_unet_v001", first_level=2, levels=(2, 3, 4, 5))
    logits, deltas, masks = detector.tensors(torch.empty(2, 1, 128, 128, 128, device="meta"))
    assert logits.shape == (2, 1_010_880, 1)
    assert deltas.shape == (2, 1_010_880, 6)
    assert masks.shape == (2, 2, 128, 128, 128)


def small(kind, downsampling, *, in_channels=1, first_level=2, outputs=None) -> FeaturePyramid:
    n = len(downsampling)
    kwargs = {"channels": [4, 6, 8, 8, 8, 8][:n], "downsampling": downsampling}
    depth = {"PlainEncoder": {"convs": [1] * n}, "ResidualEncoder": {"blocks": [1] * n}}[kind]
    encoder = make_encoder({"class": kind, "kwargs": kwargs | depth}, in_channels)
    return FeaturePyramid(
        encoder, UFPN(encoder.channels, encoder.strides, out_channels=16, first_level=first_level, outputs=outputs)
    )


def scene(shape, *, channels=1, classes=1, segmentation=True):
    """Two images, one with an object of each class and one without any."""
    images = 0.1 * torch.randn(2, channels, *shape, generator=torch.Generator().manual_seed(0))
    instances = torch.zeros(2, *shape, dtype=torch.int32)
    boxes = torch.zeros(classes, 6)
    for k in range(classes):
        low = [n * (1 + 2 * k) // 8 for n in shape]
        high = [start + max(1, n // 6) for start, n in zip(low, shape, strict=True)]
        where = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        instances[(0, *where)] = k + 1
        images[(0, slice(None), *where)] += 1 + k
        boxes[k] = torch.tensor([*low, *high])
    targets = [
        {"boxes": boxes, "labels": torch.arange(classes), "seed": 0},
        {"boxes": torch.zeros(0, 6), "labels": torch.zeros(0, dtype=torch.int64), "seed": 1},
    ]
    if segmentation:
        for target, mask in zip(targets, instances, strict=True):
            target["instances"] = mask
    return images, targets


# kind, downsampling, levels, channels, classes, segmentation, flavour, patch
PLANS = {
    "plain, four of six": ("PlainEncoder", CUBIC, (2, 3, 4, 5), 1, 1, True, FocalL1(), (32, 32, 64)),
    "residual, five of six": ("ResidualEncoder", CUBIC, (1, 2, 3, 4, 5), 2, 3, True, FocalL1(), (32, 64, 32)),
    "plain, four of five": ("PlainEncoder", CUBIC[:5], (1, 2, 3, 4), 3, 2, True, HnmGiou(), (16, 32, 48)),
    "residual, anisotropic": ("ResidualEncoder", FLAT, (2, 3, 4, 5), 4, 1, True, HnmGiou(), (8, 64, 32)),
    "plain, anisotropic, boxes only": ("PlainEncoder", FLAT, (2, 3, 4), 1, 3, False, FocalL1(), (4, 32, 64)),
    "residual, boxes only": ("ResidualEncoder", CUBIC[:4], (1, 2, 3), 4, 2, False, HnmGiou(), (16, 16, 16)),
    "strided stem": ("ResidualEncoder", [[2, 2, 2]] * 4, (0, 1, 2), 1, 1, True, FocalL1(), (32, 32, 32)),
    "flat strided stem": ("PlainEncoder", [[1, 2, 2], *CUBIC[1:4]], (0, 1, 2), 2, 2, True, HnmGiou(), (8, 32, 32)),
}


@pytest.mark.parametrize("plan", PLANS)
def test_any_plan_learns_and_detects(plan) -> None:
    kind, downsampling, levels, channels, classes, segmentation, loss, patch = PLANS[plan]
    torch.manual_seed(0)
    read = [0, *levels] if segmentation else list(levels)
    pyramid = small(kind, downsampling, in_channels=channels, first_level=levels[0], outputs=read)
    detector = RetinaUNet(
        pyramid,
        classes=[f"class {k}" for k in range(classes)],
        anchors_zyx=[[2, 4, 4], [4, 6, 4], [4, 8, 8]],
        levels=levels,
        head_channels=16,
        segmentation=segmentation,
        loss=loss,
    )
    images, targets = scene(patch, channels=channels, classes=classes, segmentation=segmentation)
    losses = detector(images, targets)
    assert set(losses) == {"loss", "classification", "regression", *(["segmentation"] if segmentation else [])}
    losses["loss"].backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    limit = torch.tensor([*patch, *patch])
    for found in detector.eval().detect(images):
        assert len(found["boxes"]) > 0
        assert ((found["boxes"] >= 0) & (found["boxes"] <= limit)).all()
        assert set(found["labels"].tolist()) <= set(range(classes))
    if segmentation:
        assert detector.tensors(images)[2].shape == (2, 2, *patch)


@pytest.mark.parametrize("strides", [CUBIC, FLAT], ids=["cubic", "anisotropic"])
def test_a_patch_that_does_not_divide_is_refused_by_axis(strides) -> None:
    detector = RetinaUNet(small("PlainEncoder", strides), classes=("a",), anchors_zyx=[[4, 4, 4]], head_channels=16)
    images, targets = scene((32, 32, 32 + 4))
    with pytest.raises(ValueError, match="images have 36 voxels along x, wanted a multiple of 32"):
        detector(images, targets)
