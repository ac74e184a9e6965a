"""Where a voxel lies, against a loop in float64."""

import math

import pytest
import torch

from girih_detectors import ChannelMapper, PositionalEncoding3D
from girih_detectors.positional_encoding import box_encoding, features_per_axis, sine_features, voxel_encoding


def loop(angle: float, features: int) -> list[float]:
    """DETR's: feature i is at the exponent 2 floor(i / 2) / features, even ones are sines, odd ones cosines."""
    rates = [angle / 10_000 ** (2 * (i // 2) / features) for i in range(features)]
    return [math.cos(rate) if i % 2 else math.sin(rate) for i, rate in enumerate(rates)]


@pytest.mark.parametrize(("dim", "features"), [(48, 16), (64, 20), (128, 42), (256, 84), (6, 2)])
@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_voxels(dim, features, offset) -> None:
    shape = (3, 1, 5)
    found = voxel_encoding(shape, dim, offset)
    rows = []
    for z in range(3):
        for y in range(1):
            for x in range(5):
                angles = [2 * math.pi * (i + 1 + offset) / n for i, n in zip((z, y, x), shape, strict=True)]
                rows.append([number for angle in angles for number in loop(angle, features)])
    wanted = torch.tensor([row + [0.0] * (dim - 3 * features) for row in rows], dtype=torch.float64)
    assert features_per_axis(dim) == features
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6)


def test_boxes() -> None:
    boxes = torch.rand(2, 3, 6)
    found = box_encoding(boxes, 8)
    assert found.shape == (2, 3, 48)
    for row, box in zip(found.flatten(0, 1), boxes.flatten(0, 1).tolist(), strict=True):
        wanted = [number for entry in box for number in loop(2 * math.pi * entry, 8)]
        torch.testing.assert_close(row.double(), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=2e-6)


def test_every_voxel_has_its_own_code() -> None:
    encoding = PositionalEncoding3D(48, 2)
    codes = encoding(((4, 6, 5), (2, 3, 5)))
    assert codes.shape == (150, 48)
    assert torch.pdist(codes).min() > 0.1
    assert torch.pdist(voxel_encoding((128, 1, 1), 128)).min() > 0.05  # 42 features tell neighbours of a long axis


def test_the_level_is_added() -> None:
    encoding = PositionalEncoding3D(12, 2)
    first, second = encoding(((2, 2, 2), (2, 2, 2))).split(8)
    torch.testing.assert_close(
        second - first, (encoding.level_embedding[1] - encoding.level_embedding[0]).expand(8, -1)
    )
    assert abs(PositionalEncoding3D(500, 20).level_embedding.std().item() - 1) < 0.05
    assert [name for name, _ in encoding.named_parameters()] == ["level_embedding"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sine_features(torch.zeros(2), 3), "features are 3, wanted an even number"),
        (lambda: PositionalEncoding3D(5, 1), "dim is 5"),
        (lambda: PositionalEncoding3D(6, 0), "levels 0"),
        (lambda: PositionalEncoding3D(6, 1, math.nan), "offset is nan"),
        (lambda: ChannelMapper([8], 24), "dim is 24, wanted a multiple of the 16 groups"),
        (lambda: ChannelMapper([], 32), "channels are empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_maps_of_any_width_become_one() -> None:
    """Per image and group of channels, mean 0 and variance 1, also of negative numbers: no activation follows."""
    mapper = ChannelMapper([3, 7], 32)
    maps = mapper([torch.randn(2, 3, 2, 4, 6), 9 + torch.randn(2, 7, 1, 2, 3)])
    assert [tuple(x.shape) for x in maps] == [(2, 32, 2, 4, 6), (2, 32, 1, 2, 3)]
    for x in maps:
        groups = x.reshape(2, 16, -1)
        torch.testing.assert_close(groups.mean(-1), torch.zeros(2, 16), rtol=0, atol=1e-5)
        torch.testing.assert_close(groups.var(-1, correction=0), torch.ones(2, 16), rtol=1e-3, atol=0)
    assert {name: tuple(part.shape) for name, part in mapper.state_dict().items() if name.startswith("maps.1")} == {
        "maps.1.0.weight": (32, 7, 1, 1, 1), "maps.1.0.bias": (32,), "maps.1.1.weight": (32,), "maps.1.1.bias": (32,),
    }  # fmt: skip
