"""The detectors on every encoder and with every flavour, and the weights that they take or refuse."""

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
from girih_detectors import DeformableDETR, RetinaUNet

PATCH = (32, 32, 32)
LABELS = {"scans": {"channels": 1, "classes": ["organ"], "regions": [[1]], "activation": "sigmoid"}}
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


@pytest.mark.parametrize("encoder", ENCODERS)
def test_deformable_detr_trains_on_every_encoder_without_masks_or_neck(encoder: str) -> None:
    kwargs = {key: value[:3] for key, value in ENCODERS[encoder]["kwargs"].items()}
    kwargs["downsampling"] = [[4, 8, 4], *kwargs["downsampling"][1:]]  # few voxels
    description = {"class": ENCODERS[encoder]["class"], "kwargs": kwargs}
    plan = replace(plan_with(encoder), encoder=description, neck=None, levels=(0,))
    with pytest.raises(ValueError, match="the plan has no queries"):
        make_detector(plan, in_channels=2, classes=("ball", "cube"), seed=1, detector="deformable_detr")
    detector = make_detector(
        replace(plan, queries=7), in_channels=2, classes=("ball", "cube"), seed=1, detector="deformable_detr"
    )
    assert isinstance(detector, DeformableDETR)
    image = torch.randn(2, 2, *PATCH, generator=torch.Generator().manual_seed(0))
    targets = [
        {"boxes": torch.tensor([[8.0, 8, 8, 14, 14, 14]]), "labels": torch.tensor([1])},
        {"boxes": torch.zeros(0, 6), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    loss = detector(image, targets)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in detector.parameters())
    (found,) = detector.eval().detect(image[:1])
    assert len(found["boxes"]) == 2 * 7  # each query as each class
    assert ((found["boxes"] >= 0) & (found["boxes"] <= 32)).all()


def test_a_detector_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="detector is 'yolo', wanted one of retina_unet, deformable_detr"):
        make_detector(plan_with("plain"), in_channels=1, classes=("ball",), seed=0, detector="yolo")


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", ["mae", "models_genesis", "multitalent", "s3d", "voco"])
def test_the_weights_of_every_objective_start_deformable_detr(name: str, encoder: str, tmp_path: Path) -> None:
    plan, weights = replace(plan_with(encoder), queries=12), tmp_path / "encoder.safetensors"
    small = {"crop_zyx": (16, 16, 16), "projector_width": 16} if name == "voco" else {}
    objective = make_objective(
        girih_ssl.objectives()[name](**small), plan, patch_zyx=PATCH, in_channels=1, seed=0, datasets=LABELS
    )
    girih_backbones.save_weights(weights, encoder=objective.encoder, stems=getattr(objective, "stems", None))
    detector = make_detector(plan, in_channels=1, classes=("ball",), seed=1, detector="deformable_detr")
    wanted, drawn = objective.encoder.state_dict(), detector.pyramid.state_dict()
    assert not drawn["stem.conv.weight"].equal(wanted["stem.conv.weight"])
    stem = "dataset:scans" if name == "multitalent" else "exact"
    report, warnings = initialise(
        detector, girih_backbones.read_weights(weights), PrepareSpec(), PATCH, stem=stem, allow=()
    )
    found = detector.pyramid.state_dict()
    assert warnings == []
    assert report.counts["loaded"] == len(found)
    assert all(tensor.equal(wanted[key]) for key, tensor in found.items())


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
