"""Weight decay spares the norms."""

from torch import nn

from girih_detectors import parameter_groups


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
