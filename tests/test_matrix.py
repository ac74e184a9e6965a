"""Every objective with every encoder and the detector: builds, trains a step, hands its weights on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import girih_backbones
import girih_ssl
from girih.networks import initialise, make_detector, make_objective
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
@pytest.mark.parametrize("name", sorted(girih_ssl.objectives()))
@pytest.mark.parametrize("channels", [1, 2])
def test_objective_encoder_detector(name: str, encoder: str, channels: int, tmp_path: Path) -> None:
    plan, config = plan_with(encoder), girih_ssl.objectives()[name]()
    objective = make_objective(config, plan, patch_zyx=PATCH, in_channels=channels, seed=0)
    image = torch.randn(2, channels, *PATCH, generator=torch.Generator().manual_seed(0))
    before = [parameter.detach().clone() for parameter in objective.encoder.parameters()]
    optimiser = torch.optim.SGD(objective.parameters(), lr=1e-3)
    objective({"image": image, "seed": torch.tensor([1, 2]), "dataset": ["a", "a"], "case_id": ["x", "y"]})[
        "loss"
    ].backward()
    optimiser.step()
    assert any(not new.equal(old) for new, old in zip(objective.encoder.parameters(), before, strict=True))

    weights = tmp_path / "encoder.safetensors"
    girih_backbones.save_weights(weights, encoder=objective.encoder, objective=name, patch_zyx=PATCH)
    detector = make_detector(plan, in_channels=channels, classes=("ball",), segmentation=True, seed=1)
    report, _ = initialise(
        detector, girih_backbones.read_weights(weights), PrepareSpec(), PATCH, stem="exact", allow=()
    )
    assert report.counts["loaded"] == len(objective.encoder.state_dict())
    trained = objective.encoder.state_dict()
    assert all(tensor.equal(trained[key]) for key, tensor in detector.pyramid.encoder.state_dict().items())

    instances = torch.zeros(2, *PATCH, dtype=torch.int32)
    instances[0, 8:14, 8:14, 8:14] = 1
    targets = [
        {"boxes": torch.tensor([[8.0, 8, 8, 14, 14, 14]]), "labels": torch.tensor([0]), "instances": instances[0]},
        {"boxes": torch.zeros(0, 6), "labels": torch.zeros(0, dtype=torch.int64), "instances": instances[1]},
    ]
    loss = detector(image, targets)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in detector.parameters())
    found = detector.eval().detect(image)
    assert len(found) == 2
    assert all(((f["boxes"] >= 0) & (f["boxes"] <= 32)).all() for f in found)


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
