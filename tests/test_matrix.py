"""The detector on every encoder and with every flavour, and the weights that it takes or refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import girih_backbones
from girih.networks import initialise, make_detector
from girih.plans import Plan, load_plan
from girih_data3d import PrepareSpec
from girih_detectors import RetinaUNet

PATCH = (32, 32, 32)
ENCODERS = {
    "residual": {
        "class": "ResidualEncoder",
        "kwargs": {
            "channels": [8, 12, 16, 16],
            "downsampling": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
            "blocks": [1, 1, 1, 1],
        },
    },
    "plain": {
        "class": "PlainEncoder",
        "kwargs": {
            "channels": [8, 12, 16, 16],
            "downsampling": [[1, 1, 1], [2, 2, 2], [1, 2, 2], [2, 2, 2]],
            "convs": [1, 1, 1, 1],
        },
    },
}


def plan_with(encoder: str) -> Plan:
    neck = {"class": "UFPN", "kwargs": {"out_channels": 16, "first_level": 1}}
    return replace(load_plan("demo"), encoder=ENCODERS[encoder], neck=neck, patch_zyx=PATCH, levels=(1, 2, 3))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("flavour", "channels"), [("focal_l1", 1), ("hnm_giou", 2)])
def test_a_detector_trains_on_every_encoder_with_every_flavour(encoder: str, flavour: str, channels: int) -> None:
    detector = make_detector(
        plan_with(encoder), in_channels=channels, classes=("ball",), segmentation=True, seed=1, flavour=flavour
    )
    image = torch.randn(2, channels, *PATCH, generator=torch.Generator().manual_seed(0))
    instances = torch.zeros(2, *PATCH, dtype=torch.int32)
    instances[0, 8:14, 8:14, 8:14] = 1
    targets = [
        {"boxes": torch.tensor([[8.0, 8, 8, 14, 14, 14]]), "labels": torch.tensor([0])},
        {"boxes": torch.zeros(0, 6), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    targets = [{**target, "instances": instances[b], "seed": b} for b, target in enumerate(targets)]
    loss = detector(image, targets)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in detector.parameters())
    found = detector.eval().detect(image)
    assert len(found) == 2
    assert all(((f["boxes"] >= 0) & (f["boxes"] <= 32)).all() for f in found)


def test_a_plan_with_relu_has_relu_in_its_heads() -> None:
    detector = make_detector(load_plan("retina_unet_v001"), in_channels=1, classes=("x",), segmentation=True, seed=0)
    kinds = {type(part) for part in detector.modules()}
    assert torch.nn.ReLU in kinds
    assert torch.nn.LeakyReLU not in kinds


def test_weights_of_another_architecture_change_nothing(tmp_path: Path) -> None:
    weights = tmp_path / "encoder.safetensors"
    plain = girih_backbones.make_encoder(ENCODERS["plain"], 1)
    girih_backbones.save_weights(weights, encoder=plain)
    detector = make_detector(plan_with("residual"), in_channels=1, classes=("ball",), segmentation=False, seed=0)
    before = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    with pytest.raises(girih_backbones.TransferError, match="PlainEncoder"):
        initialise(detector, girih_backbones.read_weights(weights), PrepareSpec(), PATCH, stem="exact", allow=())
    assert all(tensor.equal(before[key]) for key, tensor in detector.state_dict().items())


def test_weights_of_an_isotropic_encoder_in_an_anisotropic_one(tmp_path: Path) -> None:
    weights = tmp_path / "encoder.safetensors"
    residual = ENCODERS["residual"]
    source = girih_backbones.make_encoder(residual, 1)
    girih_backbones.save_weights(weights, encoder=source)
    stages = len(residual["kwargs"]["channels"])
    flat = {**residual, "kwargs": {**residual["kwargs"], "kernels": [[1, 3, 3]] + [[3, 3, 3]] * (stages - 1)}}
    plan = replace(plan_with("residual"), encoder=flat)
    detector = make_detector(plan, in_channels=1, classes=("ball",), segmentation=False, seed=0)
    given = (detector, girih_backbones.read_weights(weights), PrepareSpec(), PATCH)
    with pytest.raises(girih_backbones.TransferError, match="average_kernels"):
        initialise(*given, stem="exact", allow=())
    report, _ = initialise(*given, stem="exact", allow=(), average_kernels=True)
    assert report.counts["reshaped"] > 0
    mean = source.state_dict()["stem.conv.weight"].mean(2, keepdim=True)
    torch.testing.assert_close(detector.pyramid.encoder.state_dict()["stem.conv.weight"], mean)


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("encoder", "wanted"), [("retina_unet_v001", 18_967_555), ("resenc_l", 95_241_251)])
def test_parameter_counts_of_the_assembled_networks(encoder: str, wanted: int) -> None:  # nnDetection's
    body = girih_backbones.make_encoder(girih_backbones.preset(encoder), 1)
    pyramid = girih_backbones.FeaturePyramid(body, girih_backbones.UFPN(body.channels, body.strides))
    assert parameters(RetinaUNet(pyramid, classes=("lesion",), anchors_zyx=np.ones((27, 3)))) == wanted


def test_the_program_leaves_out_the_one_map_that_nobody_reads() -> None:
    detector = make_detector(load_plan("resenc_l"), in_channels=1, classes=("lesion",), segmentation=True, seed=0)
    assert parameters(detector) == 95_241_251 - (64 * 64 * 27 + 64)
