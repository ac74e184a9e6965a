"""Size, start and order of the heads."""

import pytest
import torch
from torch import nn

from girih_detectors import BoxHead, ClassHead, SegmentationHead
from girih_detectors.testing.subject import run_time_types_off


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_sizes_are_those_of_nndetection() -> None:  # 128 channels, 27 anchors, 1 class, 4 levels
    assert parameters(ClassHead(128, 128, 27, 1)) == 978_587
    assert parameters(BoxHead(128, 128, 27, 4)) == 1_445_286
    assert parameters(SegmentationHead(32, (1, 1, 1))) == 66


def test_every_anchor_starts_as_background_and_unmoved() -> None:
    maps = [torch.randn(1, 32, 4, 4, 4), torch.randn(1, 32, 2, 2, 2)]
    scores = ClassHead(32, 32, 3, 2)(maps).sigmoid()
    assert scores.shape == (1, 3 * (64 + 8), 2)
    assert scores.mean().item() == pytest.approx(0.01, rel=0.3)
    deltas = BoxHead(32, 32, 3, 2)(maps)
    assert deltas.shape == (1, 3 * (64 + 8), 6)
    assert deltas.abs().max() < 1.5


def test_rows_are_cells_then_anchors() -> None:
    head = ClassHead(4, 4, 2, 3)
    nn.init.zeros_(head.output.weight)
    with torch.no_grad():
        head.output.bias.copy_(torch.arange(6.0))
    rows = head([torch.randn(1, 4, 1, 2, 3)])
    assert torch.equal(rows[0], torch.tensor([[0.0, 1, 2], [3, 4, 5]]).repeat(6, 1))


def test_location_order_is_c_order() -> None:
    head = BoxHead(1, 1, 1, 1)
    head.tower = nn.Sequential()
    head.output = nn.Conv3d(1, 6, 1, bias=False)
    nn.init.ones_(head.output.weight)
    image = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    assert torch.equal(head([image])[0, :, 0], torch.arange(24.0))


def test_each_level_has_its_scale() -> None:
    head = BoxHead(16, 16, 1, 2).eval()
    maps = [torch.randn(1, 16, 2, 2, 2)] * 2
    with torch.no_grad():
        head.scales.copy_(torch.tensor([1.0, 3.0]))
        first, second = head(maps).chunk(2, dim=1)
    torch.testing.assert_close(3 * first, second)


def test_towers_have_the_activation_of_either_version() -> None:
    for activation, wanted in (("leaky_relu", nn.LeakyReLU), ("relu", nn.ReLU)):
        for head in (ClassHead(4, 4, 1, 1, activation=activation), BoxHead(4, 4, 1, 1, activation=activation)):
            assert [type(m) for m in head.tower] == [nn.Conv3d, nn.GroupNorm, wanted] * 2


def test_towers_start_small_and_boxes_without_bias() -> None:  # N(0, 0.01), class bias -log(99), box bias 0
    head = ClassHead(128, 128, 2, 3)
    for conv in (head.tower[0], head.tower[3], head.output):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert head.tower[0].bias is None
    torch.testing.assert_close(head.output.bias, torch.full((6,), -4.59511985))
    boxes = BoxHead(16, 16, 2, 3)
    assert not boxes.output.bias.any()
    assert torch.equal(boxes.scales, torch.ones(3))


@pytest.mark.parametrize(("channels", "groups"), [(128, 8), (40, 2), (24, 1), (16, 1), (5, 1), (50, 2)])
def test_narrow_towers_have_groups_that_divide(channels, groups) -> None:
    head = ClassHead(4, channels, 1, 1)
    assert head.tower[1].num_groups == groups
    assert head([torch.randn(1, 4, 2, 2, 2)]).shape == (1, 8, 1)


def test_segmentation_comes_out_on_the_input_grid() -> None:
    assert SegmentationHead(4, (1, 1, 1))(torch.randn(1, 4, 3, 4, 5)).shape == (1, 2, 3, 4, 5)
    assert SegmentationHead(4, (1, 2, 4))(torch.randn(1, 4, 3, 4, 5)).shape == (1, 2, 3, 8, 20)


def test_an_unknown_activation_is_refused() -> None:
    with run_time_types_off(), pytest.raises(ValueError, match="activation is 'gelu', wanted one of"):
        ClassHead(4, 4, 1, 1, activation="gelu")
