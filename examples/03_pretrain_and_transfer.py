"""Pre-train an encoder by MAE on noise, move it into Retina U-Net, and read what was moved. Seconds, no data needed."""

import tempfile
from pathlib import Path

import torch

import girih_backbones as backbones
import girih_ssl as ssl
from girih_detectors import RetinaUNet

PATCH = (32, 32, 32)
SMALL = {"channels": [8, 16, 24], "downsampling": [[1, 1, 1], [2, 2, 2], [2, 2, 2]], "blocks": [1, 1, 1]}
ENCODER = {"class": "ResidualEncoder", "kwargs": SMALL}  # preset("resenc_l") is the study's


def pretrain(out: Path) -> None:
    """Three steps of MAE; the libraries meet only here, by injection."""
    encoder = backbones.make_encoder(ENCODER, in_channels=1)
    objective = ssl.MAEConfig(block_zyx=(8, 8, 8)).build(
        ssl.Parts(
            encoder=encoder,
            make_neck=lambda: backbones.UNetDecoder(encoder.channels, encoder.strides),
            make_stem=lambda channels: backbones.make_stem(encoder, channels),
            in_channels=1,
            patch_zyx=PATCH,
        )
    )
    optimiser = torch.optim.SGD(objective.parameters(), lr=1e-2, momentum=0.9)
    for step in range(3):
        loss = objective({"image": torch.randn(2, 1, *PATCH), "seed": torch.tensor([2 * step, 2 * step + 1])})["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        print(f"step {step}: loss {loss.item():.3f}")
    backbones.save_weights(out, encoder=encoder, objective="MAE", patch_zyx=PATCH, steps=3)


with tempfile.TemporaryDirectory() as folder:
    weights = Path(folder) / "encoder.safetensors"
    pretrain(weights)
    encoder = backbones.make_encoder(ENCODER, in_channels=1)
    pyramid = backbones.FeaturePyramid(
        encoder, backbones.UFPN(encoder.channels, encoder.strides, out_channels=16, first_level=1)
    )
    detector = RetinaUNet(pyramid, classes=("lesion",), anchors_zyx=[[4, 4, 4]], levels=(1, 2), head_channels=16)
    report = backbones.load_weights(pyramid.encoder, backbones.read_weights(weights))
    print(report)
    print(f"boxes in an empty image: {len(detector.eval().detect(torch.zeros(1, 1, *PATCH))[0]['boxes'])}")
