"""Weight decay spares the norms."""

import torch
from torch import nn

from girih_detectors import RetinaUNet, parameter_groups
from girih_detectors.testing import TinyPyramid


def test_norms_do_not_decay_and_frozen_parameters_stay_out() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.GroupNorm(1, 2), nn.InstanceNorm3d(2, affine=True), nn.Linear(2, 2))
    model[3].weight.requires_grad_(False)
    decayed, spared = parameter_groups(model, 3e-5)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (3e-5, 0.0)
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[0].bias), id(model[3].bias)}
    assert {id(p) for p in spared["params"]} == {id(p) for m in (model[1], model[2]) for p in m.parameters()}


def test_shared_parameters_come_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert len(parameter_groups(model, 0.1)[0]["params"]) == 3


def test_of_retina_unet_the_biases_and_scales_decay_and_the_norms_do_not() -> None:
    model = RetinaUNet(TinyPyramid(), classes=("a",), anchors_zyx=[[4, 4, 4]], levels=(1, 2), head_channels=16)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 3e-5))
    norms = {
        n
        for name, m in model.named_modules()
        if isinstance(m, nn.GroupNorm)
        for n in (f"{name}.weight", f"{name}.bias")
    }
    assert len(norms) == 2 * (3 + 2 + 2)
    assert spared == norms
    assert decayed == set(names.values()) - norms
    assert {"box_head.scales", "class_head.output.bias", "pyramid.lateral.0.bias"} <= decayed
    torch.optim.SGD(parameter_groups(model, 3e-5), lr=0.01, momentum=0.9, nesterov=True)


def test_a_model_without_norms_has_an_optimiser() -> None:
    decayed, spared = parameter_groups(nn.Linear(2, 2), 0.1)
    assert (len(decayed["params"]), len(spared["params"])) == (2, 0)
    torch.optim.AdamW(parameter_groups(nn.Linear(2, 2), 0.1))
