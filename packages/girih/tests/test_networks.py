from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

import girih_ssl
from girih.networks import encoder_of, make_detector, make_objective
from girih.plans import load_plan
from girih_ssl.testing import make_batch

LABELS: Any = {"scans": {"channels": 1, "classes": ["organ"], "regions": [[1]], "activation": "sigmoid"}}


@pytest.mark.parametrize("name", ["mae", "multitalent"])
def test_an_objective_on_the_plans_pyramid_trains_all_of_it(name: str) -> None:
    config, patch = girih_ssl.objectives()[name](), (32, 32, 32)
    objective = make_objective(
        config, load_plan("demo"), patch_zyx=patch, in_channels=1, seed=0, neck="plan", datasets=LABELS
    )
    batch = make_batch(1, 1, patch)
    objective({**batch, "dataset": ["scans"]})["loss"].backward()
    assert [key for key, parameter in objective.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("deep", "levels"), [(True, {"0", "1", "2"}), (False, {"0"})])
def test_multitalent_supervises_the_pyramid_deep_or_finest_only(deep: bool, levels: set[str]) -> None:
    objective: Any = make_objective(
        girih_ssl.MultiTalentConfig(deep_supervision=deep),
        load_plan("demo"),
        patch_zyx=(32, 32, 32),
        in_channels=1,
        seed=0,
        neck="plan",
        datasets=LABELS,
    )
    assert set(objective.heads["scans"]) == levels
    assert set(objective.neck.out) == levels


@dataclass(frozen=True)
class AllMaps:
    """A third party's method, which does not say what it reads."""

    def build(self, parts: girih_ssl.Parts) -> nn.Module:
        neck: Any = parts.make_neck()
        return neck


def test_a_method_that_does_not_say_what_it_reads_gets_all_maps() -> None:
    state = torch.get_rng_state()
    neck: Any = make_objective(AllMaps(), load_plan("demo"), patch_zyx=(32, 32, 32), in_channels=1, seed=0, neck="plan")
    assert set(neck.out) == {"0", "1", "2", "3"}
    assert torch.get_rng_state().equal(state)


@dataclass(frozen=True)
class SomeMaps(AllMaps):
    """Says what nobody knows."""

    neck_maps = "some"


def test_unknown_maps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"SomeMaps.neck_maps is 'some', wanted 'finest' or 'deep'"):
        make_objective(SomeMaps(), load_plan("demo"), patch_zyx=(32, 32, 32), in_channels=1, seed=0, neck="plan")


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("name", ["retina_unet", "deformable_detr"])
def test_checkpointing_reaches_the_encoders_of_a_detector(name: str, on: bool) -> None:
    plan = replace(load_plan("demo"), queries=12)
    made: Any = make_detector(plan, in_channels=1, classes=("a",), seed=0, detector=name, checkpointing=on)
    assert encoder_of(made).checkpointing is on
    if name == "deformable_detr":
        assert made.encoder.checkpoint_layers is on
