import sys
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from girih_backbones import (
    UFPN,
    FeaturePyramid,
    PlainEncoder,
    ResidualEncoder,
    add_lora,
    freeze,
    head_first,
    parameter_groups,
    unfreeze,
)


def tiny_pyramid() -> FeaturePyramid:
    encoder = ResidualEncoder(1, channels=(2, 3, 4), blocks=(1, 1, 1))
    return FeaturePyramid(encoder, UFPN(encoder.channels, encoder.strides, out_channels=8, first_level=1))


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


# --- freezing -----------------------------------------------------------------------------------------------------


def test_freeze_holds_what_the_patterns_name_and_nothing_else() -> None:
    pyramid = tiny_pyramid()
    names = freeze(pyramid, "encoder.stem.*", "encoder.stages.[01].*")
    wanted = ("encoder.stem.", "encoder.stages.0", "encoder.stages.1")
    assert names == [name for name in values(pyramid) if name.startswith(wanted)]
    before = values(pyramid)
    optimiser = torch.optim.AdamW(pyramid.parameters(), lr=0.1)
    sum(m.square().sum() for m in pyramid(torch.randn(1, 1, 8, 8, 8))).backward()
    optimiser.step()
    moved = {name for name, tensor in values(pyramid).items() if not torch.equal(tensor, before[name])}
    assert moved == before.keys() - set(names)
    assert unfreeze(pyramid, "encoder.stem.*") == [n for n in names if "stem" in n]
    assert pyramid.encoder.stem.conv.weight.requires_grad
    assert not pyramid.encoder.stages[0][0].conv1.conv.weight.requires_grad


def test_without_a_pattern_everything_is_meant() -> None:
    encoder = tiny_pyramid().encoder
    assert freeze(encoder) == list(values(encoder))
    assert not any(p.requires_grad for p in encoder.parameters())
    assert unfreeze(encoder) == list(values(encoder))
    assert all(p.requires_grad for p in encoder.parameters())


def test_a_pattern_that_matches_nothing_is_refused_and_nothing_changes() -> None:
    encoder = tiny_pyramid().encoder
    for change in (freeze, unfreeze):
        with pytest.raises(ValueError, match=r"pattern: found 'steam\.\*', .* none of .* stem\.conv\.weight"):
            change(encoder, "stem.*", "steam.*")
    assert all(p.requires_grad for p in encoder.parameters())


# --- groups -------------------------------------------------------------------------------------------------------


def test_learning_rates_fall_with_depth() -> None:  # head 1, then a half each, the stem deepest
    pyramid = tiny_pyramid()
    groups = parameter_groups(pyramid, pyramid.encoder, lr=0.8, decay=0.5)
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("head", 0.8), ("stages.2", 0.4), ("stages.1", 0.2), ("stages.0", 0.1), ("stem", 0.05),
    ]  # fmt: skip
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in pyramid.neck.parameters()}
    assert {id(p) for p in groups[-1]["params"]} == {id(p) for p in pyramid.encoder.stem.parameters()}
    everything = [id(p) for group in groups for p in group["params"]]
    assert len(everything) == len(set(everything))
    assert set(everything) == {id(p) for p in pyramid.parameters()}


def test_a_step_is_as_long_as_the_groups_rate_says() -> None:
    pyramid = tiny_pyramid()
    groups = parameter_groups(pyramid, pyramid.encoder, lr=1.0, decay=0.5)
    before = values(pyramid)
    for p in pyramid.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(groups).step()  # the groups are plain: any optimiser takes them
    after = values(pyramid)
    steps = {name: (before[name] - after[name]).mean().item() for name in before}
    assert steps["neck.lateral.0.weight"] == pytest.approx(1.0, rel=1e-4)
    assert steps["encoder.stages.2.0.conv1.conv.weight"] == pytest.approx(0.5, rel=1e-4)
    assert steps["encoder.stem.conv.weight"] == pytest.approx(1 / 16, rel=1e-4)


def test_an_encoder_alone_has_no_head_and_an_empty_stage_no_group() -> None:
    encoder = PlainEncoder(1, channels=(2, 3), convs=(1, 1))  # the stem is all of stage 0
    groups = parameter_groups(encoder, encoder, lr=1.0, decay=0.5)
    assert [(group["name"], group["lr"]) for group in groups] == [("stages.1", 0.5), ("stem", 0.125)]


def test_frozen_parameters_wait_in_their_group() -> None:
    pyramid = tiny_pyramid()
    freeze(pyramid, "encoder.*")
    optimiser = torch.optim.SGD(parameter_groups(pyramid, pyramid.encoder, lr=0.1))
    before = values(pyramid.encoder)
    for _ in range(2):
        sum(m.square().sum() for m in pyramid(torch.randn(1, 1, 8, 8, 8))).backward()
        optimiser.step()
        still = all(torch.equal(tensor, before[name]) for name, tensor in values(pyramid.encoder).items())
        assert still == (not pyramid.encoder.stem.conv.weight.requires_grad)
        unfreeze(pyramid)


def test_wrong_groups_are_refused() -> None:
    pyramid, other = tiny_pyramid(), tiny_pyramid()
    with pytest.raises(ValueError, match="encoder: not found in the FeaturePyramid"):
        parameter_groups(pyramid, other.encoder, lr=0.1)
    for decay in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match=f"decay: found {decay}"):
            parameter_groups(pyramid, pyramid.encoder, lr=0.1, decay=decay)


# --- warm-up ------------------------------------------------------------------------------------------------------


def test_the_head_goes_first_then_all_from_the_start() -> None:
    factor = partial(head_first, head_steps=4, ramp_steps=2)
    assert [factor("head", step) for step in range(8)] == [0.25, 0.5, 0.75, 1.0, 0.5, 1.0, 1.0, 1.0]
    assert [factor("stem", step) for step in range(8)] == [0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    assert head_first("stem", 0, head_steps=0, ramp_steps=0) == 1.0
    with pytest.raises(ValueError, match="steps: found -1, 4 and 2"):
        factor("head", -1)


@given(st.integers(0, 50), st.integers(0, 20), st.integers(0, 20))
def test_factors_stay_within_bounds_and_end_at_one(step, head_steps, ramp_steps) -> None:
    head, deep = (head_first(name, step, head_steps=head_steps, ramp_steps=ramp_steps) for name in ("head", "stages.0"))
    assert 0 <= deep <= head <= 1
    assert (deep == 0) == (step < head_steps)
    assert step < head_steps + ramp_steps or deep == head == 1


@pytest.mark.parametrize("make", [torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1)])
def test_a_warm_up_moves_the_head_alone_at_first(make) -> None:
    pyramid = tiny_pyramid()
    groups = parameter_groups(pyramid, pyramid.encoder, lr=0.1, decay=0.5)
    optimiser = make(groups)
    factors = [partial(head_first, group["name"], head_steps=2, ramp_steps=2) for group in groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factors)
    for step in range(4):
        before = values(pyramid)
        optimiser.zero_grad()
        sum(m.square().sum() for m in pyramid(torch.randn(1, 1, 8, 8, 8))).backward()
        optimiser.step()
        schedule.step()
        moved = {name.partition(".")[0] for name, t in values(pyramid).items() if not torch.equal(t, before[name])}
        assert moved == ({"neck"} if step < 2 else {"neck", "encoder"})
    assert [group["lr"] for group in optimiser.param_groups] == [0.1, 0.05, 0.025, 0.0125, 0.00625]


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"girih-backbones\[lora\]"):
        add_lora(tiny_pyramid())
